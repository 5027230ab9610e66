"""Values written as command-line words come back from Hydra as the same values."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from orchestrator.config import compose, hydra_word, normal_form, rerun_words
from orchestrator.errors import ConfigError
from orchestrator.model import Axis, Searched

TEXTS = [
    *(
        "",
        " ",
        "a b",
        " edge ",
        "relu",
        "a-b_c",
        "x,y",
        "a=b",
        "a:b",
        "[1]",
        "{a:1}",
        "(x)",
        "interval(0, 1)",
        "choice(a,b)",
    ),
    *(
        "-5",
        "5",
        "-1e5",
        "1_000",
        "-nan",
        "nan",
        "NaN",
        "inf",
        "-Inf",
        "null",
        "Null",
        "true",
        "FALSE",
        "~x",
        "+x",
        "???",
    ),
    *(
        "ü",
        "日本",
        "it's",
        'q"uote',
        "'\"",
        "back\\slash",
        "trailing\\",
        "two\\\\",
        '\\"',
        "\\'",
        'a\\\\"b\\',
        "new\nline",
    ),
    *(
        "tab\t",
        "${x}",
        "${x",
        "\\${x}",
        "$HOME",
        "`ls`",
        "!history",
        "#note",
        "%",
        "a;b&c|d>e",
        "\x1b[31m",
    ),
]
SCALARS = [
    None,
    True,
    False,
    0,
    -7,
    10**30,
    0.0,
    -0.0,
    0.1,
    1e-05,
    1e22,
    -2.5e-300,
    1.7976931348623157e308,
]
_texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0")
) | st.sampled_from(TEXTS)
_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | _texts
)
_keys = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]*", fullmatch=True).filter(
    lambda key: key.lower() not in ("null", "true", "false", "nan", "inf")
)
VALUES = st.recursive(
    _scalars,
    lambda item: st.lists(item, max_size=3) | st.dictionaries(_keys, item, max_size=3),
    max_leaves=6,
)


def parsed(word: str) -> Any:
    """As Hydra itself reads it, after a shell."""
    (text,) = shlex.split(shlex.quote(word))
    return OverridesParser.create().parse_override(text).value()


@settings(max_examples=150)
@given(VALUES)
@example([{"a": TEXTS, "b": [{}, [], [[]]]}, SCALARS])
def test_every_json_value_comes_back(value: Any) -> None:
    assert repr(parsed(f"a.b={hydra_word(value)}")) == repr(value)


@pytest.mark.parametrize("value", [*TEXTS, *SCALARS])
def test_every_awkward_scalar_comes_back(value: Any) -> None:
    assert repr(parsed(f"a={hydra_word(value)}")) == repr(value)


def test_words_stay_readable() -> None:
    assert [hydra_word(v) for v in ("relu", 0.1, 3, True, None, [1, "a"])] == [
        "relu",
        "0.1",
        "3",
        "true",
        "null",
        "[1,a]",
    ]
    assert (
        hydra_word({"type": "cnn", "k": [3, 5], "a b": 1, "c/d": 2})
        == "{type:cnn,k:[3,5],a\\ b:1,c/d:2}"
    )


@pytest.mark.parametrize("key", ["a b", " edge", "a:b", "x,y", "[1]", "${x}", "3x", "-a", "\\"])
def test_keys_that_need_escapes_come_back(key: str) -> None:
    assert parsed(f"a={hydra_word({key: key})}") == {key: key}


@pytest.mark.parametrize("key", ["", "1", "true", "null", "ü", "it's", 'q"'])
def test_a_key_that_no_word_can_say_is_refused_not_bent(key: str) -> None:
    with pytest.raises(ConfigError, match="no way to write"):
        hydra_word({"deep": [{key: 1}]})


def test_normal_form_is_what_the_command_line_takes() -> None:
    assert (
        normal_form(Searched("optim.lr", "float", 1e-4, 0.1, log=True))
        == "tag(log, interval(0.0001, 0.1))"
    )
    assert normal_form(Searched("a", "float", 0.0, 0.75, step=0.25)) == "range(0.0, 1.0, 0.25)"
    assert (
        normal_form(Searched("a", "categorical", choices=("relu", "it's")))
        == 'choice(relu,"it\'s")'
    )
    assert normal_form(Axis("a", (1, 2))) == "[1,2]"
    assert normal_form(Axis("a", ({"ü": 1},))) == '[{"\\u00fc":1}]'


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "cnn.yaml").write_text("# @package params.model\ntype: cnn\nk: 3\n")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [/model: cnn]\nstudy: {name: mine}\nobjective: {_target_: "
        "my.train}\n"
        "params: {optim: {lr: 0.1, name: sgd}, worker: {count: 1}, gone: 1, layers: [1, 2], "
        "empty: null}\n"
        "grid: {optim.name: [sgd, adam]}\nbudget: {per_cell: 2}\n"
    )
    return str(tmp_path)


def test_the_words_of_a_trial_give_its_values_through_a_shell_and_hydra(mine: str) -> None:
    values: dict[str, Any] = {
        "optim.lr": 1e-05,
        "optim.name": 'it\'s "odd" \\',
        "worker.count": 2,  # a parameter that is called as a setting is
        "study.x": [1, {"a": None}],
        # a config group, and a mapping that takes the place of another
        "model": {"type": "mlp", "width": 64},
        "new.one": "-nan",
        "empty.below": "日本",
        "layers": [],
        "gone": {},
    }
    first = compose("launch", ["experiment=mine"], config_dir=mine)
    params: Any = OmegaConf.to_container(first.config.params, resolve=False)
    words = rerun_words(values, {}, params, first.groups)
    assert "optim.lr=1e-05" in words
    assert '++new.one="-nan"' in words
    line = " ".join(map(shlex.quote, words))
    again = compose("launch", ["experiment=mine", *shlex.split(line)], config_dir=mine).config
    found = {path: OmegaConf.select(again.params, path) for path in values}
    plain = {
        path: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v
        for path, v in found.items()
    }
    assert json.dumps(plain) == json.dumps(values)
    assert again.grid == {}  # optim.name is fixed now


def test_a_path_that_no_word_can_say_is_refused() -> None:
    with pytest.raises(ConfigError, match="größe"):
        rerun_words({"größe.x": 1}, {}, {}, ())
