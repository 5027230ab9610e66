"""The settings in words: what YAML, help and reference say of them."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.settings.host import HOST
from orchestrator.settings.knob import Knob, knobs, type_words
from orchestrator.settings.study import ALLOCATION, FREE, PRUNERS, SAMPLERS, SECTIONS_OF_STUDY

_CHOICES: Mapping[str, Mapping[str, type[Any]]] = {"sampler": SAMPLERS, "pruner": PRUNERS}
_WIDTH = 100
_WIDEST = 34  # of the text before a comment in its column


def remark(knob: Knob) -> str:
    """Returns one line of plain text: what a setting means, and what null stands for."""
    words = knob.meaning
    if knob.null not in ("", "none") and knob.shipped is None:
        words += f"; {knob.null}" if knob.null == "must be given" else f"; null: {knob.null}"
    return words.replace("`", "")


def written(knob: Knob) -> str:
    """Returns the default as YAML: ``null``, ``true``, ``5``, ``${paths.data}/runs``."""
    if knob.shipped is not None:
        return knob.shipped
    if knob.default is None or isinstance(knob.default, bool):
        return {None: "null", True: "true", False: "false"}[knob.default]
    return f"{knob.default:g}" if isinstance(knob.default, float) else str(knob.default)


def value_words(field: dataclasses.Field[Any]) -> str:
    """Returns what a value must be, in Markdown: ``a whole number, at least 1, or null``."""
    knob: Knob = field.metadata["knob"]
    words, rule = type_words(field), knob.rule
    nullable = words.endswith(" or null")
    words = words.removesuffix(" or null")
    if rule is None or words.startswith("a list"):
        parts = [] if words in ("a value", "a word") else [words]
    elif rule.choices:
        parts = [f"`{choice}`" for choice in rule.choices]
    else:
        parts = [rule.words] if words in ("a value", "a word") else [words, rule.words]
    return ", ".join([*parts, "or null"] if parts and nullable else parts)


def section(name: str, chosen: str | None = None) -> Mapping[str, Knob]:
    """Returns the settings of a section; of a sampler or pruner, those of the one `chosen`."""
    if name in _CHOICES:
        schema = _CHOICES[name].get(chosen or "")
        return {} if schema is None else knobs(schema)
    if name in SECTIONS_OF_STUDY or name in HOST:
        return knobs({**SECTIONS_OF_STUDY, **HOST}[name])
    prefix = f"{name}."
    return {
        path.removeprefix(prefix): knob for path, knob in FREE.items() if path.startswith(prefix)
    }


def commented(lines: Iterable[tuple[str, str]]) -> list[str]:
    """Returns lines of YAML with their remarks beside them, in one column, wrapped where they are
    long.
    """
    pairs = list(lines)
    column = (
        max((len(text) for text, words in pairs if words and len(text) <= _WIDEST), default=0) + 2
    )
    result = []
    for text, words in pairs:
        if not words:
            result.append(text)
            continue
        room = max(30, _WIDTH - column - 2)
        first, *more = textwrap.wrap(words, room, break_long_words=False, break_on_hyphens=False)
        result.append(f"{text:<{column}}# {first}" if len(text) < column else f"{text}  # {first}")
        result += [f"{'':<{column}}# {line}" for line in more]
    return result


def annotated(yaml: str) -> str:
    """Returns a composed config with a remark beside every setting."""
    pairs, top, here = [], "", dict[str, Knob]()
    lines = yaml.splitlines()
    for number, line in enumerate(lines):
        if found := re.match(r"(\w+):", line):
            top = found[1]
            body = "\n".join(lines[number + 1 :])
            name = re.match(r"(?:  .*\n)*?  name: (\w+)", body) if top in _CHOICES else None
            here = dict(section(top, name[1] if name else None))
            knob = ALLOCATION if top == "allocation" else FREE.get(top)
        else:
            key = re.match(r"  (\w+): \S", line)
            knob = here.get(key[1]) if key else None
        pairs.append((line, "" if knob is None else remark(knob)))
    return "\n".join(commented(pairs)) + "\n"
