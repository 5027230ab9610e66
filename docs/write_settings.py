"""Writes the settings where people read them: conf/*.yaml and the tables of docs/reference.md.

    python docs/write_settings.py

Everything comes from orchestrator/settings; a test fails when a file is stale.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.settings import ALLOCATION, FREE, HOST, PRUNERS, SAMPLERS, SECTIONS_OF_STUDY, Knob
from orchestrator.settings.describe import commented, remark, section, value_words, written

ROOT = Path(__file__).resolve().parent.parent
_FIRST = {"sampler": "tpe", "pruner": "none"}  # as the defaults list of config.yaml has them

_CONFIG = """\
# Everything that can be set, with its default. Groups (a folder each) are chosen with group=option.
# `make settings` writes all below the defaults list, from orchestrator/settings.
defaults:
  - _self_
  - sampler: tpe
  - pruner: none
  - runner: default
  - storage: embedded
  - worker: default
  - experiment: null
  - override hydra/help: orchestrator

# ---- the study: stored with it
{study}

{objective}
{free}

{budget}
{allocation}

# what is enough before the budget is spent
{stop_when}

# trials that run out of memory, by device type
{infeasible}

# ---- this host: never stored
{paths}

{dashboard}

{notify}
"""


def files() -> dict[Path, str]:
    """Returns what every file should hold."""
    result = {ROOT / "conf" / "config.yaml": _config()}
    for group, options in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        for name in options:
            result[ROOT / "conf" / group / f"{name}.yaml"] = _yaml(section(group, name))
    for group in ("runner", "worker"):
        result[ROOT / "conf" / group / "default.yaml"] = _yaml(section(group))
    reference = ROOT / "docs" / "reference.md"
    result[reference] = _with_tables(reference.read_text(encoding="utf-8"))
    return result


def _yaml(knobs: Mapping[str, Knob], indent: str = "") -> str:
    lines = ((f"{indent}{name}: {written(knob)}", remark(knob)) for name, knob in knobs.items())
    return "\n".join(commented(lines)) + "\n"


def _config() -> str:
    names = (
        "study",
        "objective",
        "budget",
        "stop_when",
        "infeasible",
        "paths",
        "dashboard",
        "notify",
    )
    blocks = {name: f"{name}:\n{_yaml(section(name), '  ')}".rstrip() for name in names}
    free = {name: knob for name, knob in FREE.items() if "." not in name}
    allocation = _yaml({"allocation": ALLOCATION}).rstrip()
    return _CONFIG.format(**blocks, free=_yaml(free).rstrip(), allocation=allocation)


def _with_tables(text: str) -> str:
    for name, table in _tables().items():
        block = re.compile(
            rf"(<!-- settings: {name} -->\n\n).*?(\n<!-- end of settings -->)", re.DOTALL
        )
        (found,) = block.finditer(text)  # one block per table
        text = f"{text[: found.end(1)]}{table}{text[found.start(2) :]}"
    return text


def _tables() -> dict[str, str]:
    sections = {name: _rows(name, schema) for name, schema in SECTIONS_OF_STUDY.items()}
    free = [_row(name, knob, "") for name, knob in FREE.items()]
    allocation = (
        [_row("allocation", ALLOCATION, _code(*ALLOCATION.rule.choices))] if ALLOCATION.rule else []
    )
    study = [
        *sections["study"],
        *free,
        *sections["budget"],
        *allocation,
        *sections["stop_when"],
        *sections["infeasible"],
        *sections["runner"],
    ]
    host = [row for name, schema in HOST.items() for row in _rows(name, schema)]
    return {
        "study": _table(study),
        "sampler": _choice("sampler", SAMPLERS),
        "pruner": _choice("pruner", PRUNERS),
    } | {"host": _table(host)}


def _choice(group: str, options: Mapping[str, type[Any]]) -> str:
    rows = []
    for name, schema in options.items():
        knob: Knob = dataclasses.fields(schema)[0].metadata["knob"]
        default = " (default)" if name == _FIRST[group] else ""
        rows.append(f"| `{group}={name}`{default} | | | {_meaning(knob)} |")
        rows += _rows(group, schema)[1:]
    return _table(rows)


def _rows(name: str, schema: type[Any]) -> list[str]:
    rows = []
    for field in dataclasses.fields(schema):
        setting = "storage" if (name, field.name) == ("storage", "kind") else f"{name}.{field.name}"
        rows.append(_row(setting, field.metadata["knob"], value_words(field)))
    return rows


def _row(setting: str, knob: Knob, value: str) -> str:
    default = knob.null if _in_words(knob) else _code(written(knob))
    return f"| `{setting}` | {default} | {value} | {_meaning(knob)} |"


def _meaning(knob: Knob) -> str:
    """The line that YAML and help have too, and what only the reference says."""
    null = "" if not knob.null or _in_words(knob) else f"; null: {knob.null}"
    return f"{knob.meaning}{null}" + (f". {knob.more}" if knob.more else "")


def _in_words(knob: Knob) -> bool:
    """Whether the default is said in words, for its value says little."""
    return bool(knob.null) and (knob.default in (None, "???") or knob.shipped is not None)


def _code(*words: str) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _table(rows: list[str]) -> str:
    return "\n".join(["| setting | default | value | meaning |", "|---|---|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    for path, content in files().items():
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            path.write_text(content, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
