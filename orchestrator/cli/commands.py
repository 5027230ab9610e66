"""The commands and the words that belong to each: one table for parsing and for `--help`.

Imports nothing slow: `--help` and `--version` need no more than this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

RETRY: Final = "retry=failed"
"""The word that makes a launch run the failed trials again."""
CONFIRM: Final = "stages.confirm"
"""The word of a launch with which it asks, or ends, before each stage but the first."""
INTERRUPTED: Final = 130
"""The exit code of a command that the user interrupted."""

_JSON: Final = {"--json": "print JSON, for programs"}
_NOW: Final = {"--now": "give the running trials back at once"}
_TRIAL: Final = {"trial=N": "number of the trial"}
_REQUIRED: Final = "the study; must be given"
_STORAGE: Final = ("study.name", "storage", "paths.data")


class Command(NamedTuple):
    """A command.

    Attributes:
        run: module and function in `orchestrator.cli`, imported when it is called.
        summary: its line in the overview.
        switches: words without a value and their meaning.
        words: words with a value as the help shows them (``trial=N``) and their meaning.
        actions: of which one must be the first word, and their meaning.
        settings: the settings that matter to it: sections, or single ones.
        study: what ``study.name`` means to it, if that is among them.
        overrides: what else it takes, in words.
        examples: command lines, without ``orchestrator``.
    """

    run: str
    summary: str
    switches: Mapping[str, str] = {}
    words: Mapping[str, str] = {}
    actions: Mapping[str, str] = {}
    settings: tuple[str, ...] = _STORAGE
    study: str = "the study; default: the newest one"
    overrides: str = ""
    examples: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of its words: ``trial``."""
        return tuple(form.partition("=")[0] for form in self.words)


COMMANDS: Final[Mapping[str, Command]] = {
    "launch": Command(
        "launch.run",
        "create or continue a study, run workers on this machine, follow it to its end"
        " (--dry-run: import the objective and show the plan only)",
        {
            **_JSON,
            "--dry-run": "check everything, import the objective and show the plan; write nothing",
            RETRY: "run the failed trials again, with the same parameters",
        },
        {
            f"{CONFIRM}=true": "of an experiment with stages: show how a stage ended, and ask on a"
            " terminal, or else end, before the next one; the same command goes on with it"
        },
        settings=("storage", "worker", "paths", "notify"),
        overrides="settings, parameters, grid axes and searched parameters",
    ),
    "worker": Command(
        "serve.worker",
        "run one worker: claims a device and runs trials of all active studies",
        settings=("worker", "storage", "paths", "notify"),
        examples=("worker storage.url=postgresql+psycopg2://user@host/orchestrator",),
    ),
    "dashboard": Command(
        "serve.dashboard",
        "serve optuna-dashboard on the same storage",
        settings=("dashboard", "storage", "paths.data", "paths.artifacts"),
        examples=("dashboard dashboard.port=9000",),
    ),
    "status": Command(
        "status.run",
        "show the newest studies (n=50, n=all), cells, running trials, workers, devices",
        _JSON,
        {"n=N": "show at most so many studies, the newest; n=all: all; default: 20"},
        study="only this study; default: the newest ones",
        examples=("status study.name=digits",),
    ),
    "best": Command(
        "best.run",
        "print the best trial as YAML and as overrides"
        " (trial=N: another one; out=file.yaml: write the config to train with, out=-: print it)",
        _JSON,
        {
            "trial=N": "this trial instead of the best one",
            "observed=true": "the trial with the best value, instead of the one that is believed to"
            " be the best",
            "out=FILE": "write the config to train with to FILE; out=-: print it and nothing else",
        },
        examples=("best study.name=digits out=best.yaml",),
    ),
    "report": Command(
        "report.run",
        "write what a study found as one page: statements, pictures, tables (out=FILE.html;"
        " --markdown, --json)",
        {**_JSON, "--markdown": "print Markdown instead, without pictures"},
        {
            "out=FILE": "write to FILE, Markdown if it ends in .md; out=-: print it; default:"
            " STUDY-report.html in this directory",
        },
        examples=("report study.name=digits", "report study.name=digits --markdown"),
    ),
    "trials": Command(
        "trials.run",
        "list the best trials (n=20, n=all; state=failed, cell=key=value, sort=-ended, --csv)",
        {**_JSON, "--csv": "print every matching trial as CSV, for programs"},
        {
            "n=N": "list at most so many; n=all: all; default: 20, with --csv all",
            "cell=C": "trials of this cell: its number, or key=value,key=value for every cell that"
            " has these values",
            "state=S": "complete, pruned, failed, running, prepared, waiting, several of them"
            " separated by commas, or all; default: complete",
            "sort=K": "value (best first), number, seconds or ended; sort=-K: in reverse;"
            " default: value",
        },
        examples=(
            "trials study.name=digits n=50",
            "trials study.name=digits state=failed sort=-ended",
        ),
    ),
    "logs": Command(
        "trial_log.run",
        "print a trial's log: trial=N (attempt=K: of an earlier attempt; -f: follow it), or a"
        " probe's: probe=NAME cell=N",
        {
            **_JSON,
            "-f": "print what is added to the log until the trial has ended",
            "--follow": "the same as -f",
        },
        {
            **_TRIAL,
            "attempt=K": "an earlier attempt of it; default: the last one",
            "probe=NAME": "instead of a trial, the probe of this name in cell=N",
            "cell=N": "number of the cell",
        },
        settings=(*_STORAGE, "paths.runs"),
        examples=("logs trial=3",),
    ),
    "landscape": Command(
        "landscape.run",
        "show the loss landscapes that trials stored, side by side: trials=3,7 out=FILE.html",
        _JSON,
        {
            "trials=N,N": "numbers of the trials, separated by commas",
            "out=FILE": "write the page, which needs no network, to FILE",
            "artifact=NAME": "name of the artifact that has the landscape; default: landscape.json",
        },
        settings=(*_STORAGE, "paths.artifacts"),
        examples=("landscape study.name=digits trials=3,7 out=landscapes.html",),
    ),
    "pause": Command(
        "controls.pause",
        "start no more trials of a study (--now: give its running trials back)",
        {**_JSON, **_NOW},
        study=_REQUIRED,
    ),
    "resume": Command("controls.resume", "continue a paused study", _JSON, study=_REQUIRED),
    "stop": Command(
        "controls.stop",
        "end a study once its running trials have ended (--now: give them back)",
        {**_JSON, **_NOW},
        study=_REQUIRED,
    ),
    "retry": Command(
        "controls.retry",
        "run a failed trial again: trial=N, or trial=failed for all of them",
        _JSON,
        {"trial=N": "number of the trial; trial=failed: all that failed"},
        study=_REQUIRED,
    ),
    "delete": Command(
        "delete.run",
        "delete a study that does not run, with its run directories and artifacts (--yes)",
        {**_JSON, "--yes": "do not ask for the study's name; required without a terminal"},
        settings=(*_STORAGE, "paths.runs", "paths.checkpoints", "paths.artifacts"),
        study=_REQUIRED,
        examples=("delete study.name=digits",),
    ),
    "enqueue": Command(
        "controls.enqueue",
        "add a trial by hand, on top of the budget: key=value …",
        _JSON,
        study=_REQUIRED,
        overrides="the parameters of the trial; the sampler suggests the others",
        examples=("enqueue study.name=digits data.batch_size=64 optim.lr=0.01",),
    ),
    "rerun": Command(
        "rerun.run",
        "run the best trial, or trial=N, again with its seed and compare its value"
        " (seeds=5: have workers run its parameters with five other seeds)",
        _JSON,
        {
            "trial=N": "this trial instead of the best one (trial=best)",
            "seeds=N": "add N trials with its parameters and other seeds, on top of the budget; the"
            " study's workers run them",
        },
        settings=(*_STORAGE, "paths.runs", "worker.devices", "worker.allow_targets"),
        examples=("rerun study.name=digits trial=7", "rerun study.name=digits seeds=5"),
    ),
    "probe": Command(
        "probes.run",
        "show what the probes of a study have found (--again: have them measured anew)",
        {**_JSON, "--again": "measure them again, before the next trial of each cell"},
        {
            "name=NAME": "only this probe",
            "cell=N": "only this cell, by its number",
        },
        examples=("probe study.name=digits", "probe study.name=digits cell=3 --again"),
    ),
    "replay": Command(
        "replay.run",
        "make the suggestion of trial=N again, from the results the sampler had then",
        _JSON,
        _TRIAL,
    ),
    "doctor": Command(
        "doctor.run",
        "check the invariants of all studies, or of one: no trial lost, none counted twice",
        _JSON,
        study="only this study; default: all studies",
    ),
    "db": Command(
        "db.run",
        "start | stop | url | upgrade: the embedded server and the schema",
        actions={
            "start": "start the embedded server; it stays up until stopped",
            "stop": "stop it",
            "url": "print the database's URL, password included",
            "upgrade": "bring the schemas up to date, as the owner of the database",
        },
        settings=("storage", "paths.data"),
    ),
}


def overview() -> str:
    """The text of ``orchestrator --help``."""
    commands = "\n".join(f"  {name:<10} {command.summary}" for name, command in COMMANDS.items())
    return f"""usage: orchestrator COMMAND [--json] [HYDRA OVERRIDE ...]

{commands}

'orchestrator COMMAND --help' has a command's own words and settings. Every command takes Hydra
overrides (storage.path=/data, study.name=digits …) and Hydra's flags (--cfg job, --config-dir DIR).
In launch, data.batch_size=32,64 makes a grid axis, and optim.lr='tag(log, interval(1e-4, 1e-1))'
makes a searched parameter.

  orchestrator launch experiment=digits
  orchestrator best study.name=digits"""
