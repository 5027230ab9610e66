"""What `--help` says, of all commands and of each: made from the table that parsing uses."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys

import pytest

from orchestrator.cli import COMMANDS, main
from orchestrator.cli.call import Call
from orchestrator.config.plain import NAMING
from orchestrator.errors import ConfigError


def printed(*words: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(words) == 0
    return out.getvalue()


def test_the_overview_lists_every_command() -> None:
    text = printed("--help")
    assert re.findall(r"^  (\w+) {2,}\w", text, flags=re.MULTILINE) == list(COMMANDS)
    assert "COMMAND --help" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_word_that_a_command_takes_is_in_its_help(name: str) -> None:
    command, text = COMMANDS[name], printed(name, "--help")
    assert text.startswith(f"usage: orchestrator {name} ")
    usage, _, rest = text.partition("Its own words:")
    for word in (*command.switches, *command.words):
        assert f"[{word}]" in " ".join(usage.split())
    for word in (*command.switches, *command.words, *command.actions):
        assert re.search(rf"^  {re.escape(word)} +\S", rest, flags=re.MULTILINE), word
    # They are taken before Hydra sees the rest, which would not know them.
    action = list(command.actions)[:1]
    values = [f"{key}=1" for key in command.keys]
    call = Call.parse(name, [*action, *command.switches, *values])
    assert call.switches == frozenset(command.switches)
    assert call.words == dict.fromkeys(command.keys, "1")
    assert call.flags.overrides == ()


def test_a_word_of_another_command_is_no_word_of_this_one() -> None:
    assert Call.parse("status", ["trial=3"]).flags.overrides == ("trial=3",)
    with pytest.raises(ConfigError, match="--now"):
        Call.parse("status", ["--now"])


def test_help_has_the_settings_that_matter_and_no_others() -> None:
    text = printed("logs", "--help")
    assert "study.name=NAME" in text
    assert "paths.runs=" in text
    for other in ("worker.", "dashboard.", "budget", "== Config"):
        assert other not in text
    assert "study.name" not in printed("worker", "--help")
    assert "worker.drain_s=5" in printed("worker", "--help")
    assert "dashboard.port=8080" in printed("dashboard", "--help")


@pytest.mark.parametrize(
    "words",
    [
        ["pause"],
        ["resume"],
        ["stop"],
        ["delete", "--yes"],
        ["retry", "trial=1"],
        ["enqueue", "optim.lr=0.01"],
    ],
    ids=lambda words: words[0],
)
def test_help_says_which_commands_need_a_study(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == ConfigError.exit_code
    assert "study.name must be given" in capsys.readouterr().err
    assert "# the study; must be given\n" in printed(words[0], "--help")


def test_launch_shows_the_config_that_its_words_make() -> None:
    text = printed("launch", "experiment=digits", "budget.trials=7", "--help")
    assert "  --dry-run " in text
    assert "  trials: 7 " in text
    assert "== Config groups" in text
    assert "dashboard:" not in text


def test_a_command_names_a_study_in_both_of_its_forms_or_in_none() -> None:
    assert {name for name, command in COMMANDS.items() if "study.name" in command.settings} == set(
        NAMING
    )


def test_help_of_a_command_shows_defaults_and_so_resolves_nothing() -> None:
    assert main(["status", "--help", "--resolve"]) == ConfigError.exit_code


@pytest.mark.parametrize(
    ("closed", "words", "code"),
    [(">&-", "--help", 0), (">&-", "trials --help", 0), ("<&- >&- 2>&-", "nonsense", 2)],
)
def test_a_command_without_standard_streams_ends_as_it_would_with_them(
    closed: str, words: str, code: int
) -> None:
    line = f"{sys.executable} -m orchestrator {words} {closed}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
