"""One sentence of a report, with the numbers and the evidence behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from orchestrator.model import JSONValue

Verdict: TypeAlias = Literal["finding", "open", "warning", "note"]
SURE = 0.95
"""What has this probability is a finding."""


@dataclass(frozen=True)
class Statement:
    """What a study says about one question.

    Attributes:
        kind: what it is about, one word: ``metric``, ``best``, ``front``, ``few-trials``,
            ``unpredictable``, ``contrast``, ``no-difference``, ``undecided``, ``interaction``,
            ``cell``, ``importance``, ``edge``, ``seeds``, ``failures`` or ``cannot-say``.
        text: one or two sentences; names are in backticks.
        verdict: ``finding``: the trials show it; ``open``: they are not enough to say; ``warning``:
            something is wrong or wasted; ``note``: what is worth knowing.
        numbers: the figures in the text and those around them, by name, unrounded, in the
            objective's units.
        evidence: what it rests on: how many trials, which cells, which method.
        advice: the override or the command that would do something about it; empty if nothing
            would.
    """

    kind: str
    text: str
    verdict: Verdict
    numbers: Mapping[str, JSONValue]
    evidence: str
    advice: str = ""
