"""Chains of stages in words: what each inherits, and how far a chain is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from orchestrator.cli import hints
from orchestrator.cli.call import Call
from orchestrator.model import StudySpec, cell_label, count_label, value_label
from orchestrator.stages import BEST, Inherited, Inherits, Stage, forgotten

if TYPE_CHECKING:
    from orchestrator.search import CellEstimate
    from orchestrator.store import CellRow, ChainRow, Reading, StageRow, TrialRow


def intended(inherits: Inherits) -> str:
    """What a stage will inherit from the one before it."""
    if inherits.anew:
        return "inherits nothing: the tuning begins anew"
    parts = []
    if inherits.freeze == BEST:
        parts.append("freezes every parameter of the best trial that it does not declare")
    elif inherits.freeze:
        parts.append(f"freezes {', '.join(inherits.freeze)} at the best trial's values")
    parts += [
        f"narrows {path} to {share:g} of its width around the best"
        for path, share in inherits.narrow.items()
    ]
    return "; ".join(parts) or "inherits nothing new; what is frozen stays frozen"


def likelier(
    stage: Stage,
    inherited: Inherited,
    cells: Sequence[CellRow],
    estimates: Sequence[CellEstimate | None],
) -> list[str]:
    """Where the best trial, of which a stage freezes the values, is not of the cell of the stage
    before that is the likeliest to be the best: both, and how to take the other, in one line.
    """
    known = [(e.probability_best, c.values) for c, e in zip(cells, estimates, strict=True) if e]
    if not known:
        return []
    p, best = max(known, key=lambda one: one[0])
    frozen = inherited.frozen
    other = {path: value for path, value in best.items() if frozen.get(path, value) != value}
    if not other:
        return []
    here = {path: frozen[path] for path in other}
    words = [f"stages.{stage.name}.params.{cell_label({k: v})}" for k, v in other.items()]
    if stage.inherits.freeze != BEST:
        rest = [path for path in stage.inherits.freeze if path not in other]
        words.append(f"stages.{stage.name}.freeze=[{','.join(rest)}]")
    return [
        f"the best trial has {cell_label(here)}, but the best cell is rather {cell_label(other)} "
        f"(P(best) {100 * p:.0f} %); to take that instead: "
        f"{' '.join(words)}"
    ]


def defaults_again(stage: Stage, before: StudySpec, kept: Inherited) -> list[str]:
    """Which parameters of the stage before are at their defaults again, in one line."""
    paths = forgotten(stage, before, kept.frozen)
    return [f"at the default of params again: {', '.join(paths)}"] if paths else []


def table(chain: ChainRow, bests: Mapping[int, str]) -> list[str]:
    """One line per stage: how far it is, its best trial, and what it inherited.

    Args:
        bests: the best trial of each study in words, by its id.
    """
    begun = {stage.ordinal: stage for stage in chain.begun}
    lines = []
    for ordinal, declared in enumerate(chain.stages):
        stage = begun.get(ordinal)
        name, total = declared["name"], declared["spec"]["budget"]["trials"]
        if stage is None:
            lines.append(f"  {ordinal + 1} {name}: not begun, {count_label(total, 'trial')}")
            continue
        state = f"{stage.state.lower()}{f' ({stage.reason})' if stage.reason else ''}"
        best = bests.get(stage.study_id, "")
        parts = [f"{stage.spent}/{total} trials", state, *([best] if best else [])]
        lines.append(f"  {ordinal + 1} {name} ({stage.study}): {', '.join(parts)}")
        lines += [f"      {value_label(line)}" for line in stage.inherited.lines()]
    return lines


def bests(store: Reading, chain: ChainRow, newest: str = "") -> dict[int, str]:
    """The best trial of each stage in words, by the id of its study: of those before the newest,
    the one that the next stage inherited from.

    Args:
        newest: the same of the newest stage.
    """
    found = {}
    for stage, after in pairwise(chain.begun):
        metric = store.reads.spec(stage.study_id).metrics[0]
        for trial in store.reads.trials(stage.study_id, number=after.inherited.trial):
            found[stage.study_id] = best_words(trial, metric)
    if chain.newest is not None and newest:
        found[chain.newest.study_id] = newest
    return found


def best_words(trial: TrialRow, metric: str) -> str:
    """``best trial 8, val_accuracy=0.983333``."""
    value = f", {metric}={trial.values[0]:.6g}" if trial.values else ""
    return f"best trial {trial.number}{value}"


def headline(chain: ChainRow) -> str:
    """``chain digits_stages: stage 2 of 3 (training)``, and what it waits for if it waits."""
    where = f"chain {chain.name}: "
    newest = chain.newest
    if newest is None:
        where += "no stage has begun"
    elif chain.finished:
        return f"{where}finished, all {len(chain.stages)} stages"
    else:
        where += f"stage {newest.ordinal + 1} of {len(chain.stages)} ({newest.name})"
    if chain.state != "ACTIVE":
        where += f"; {chain.state.lower()} ({chain.reason})"
    if newest is not None and newest.state == "FINISHED":
        goes_on = "no launch follows it; to go on: the same launch again"
        if newest.followed and chain.state != "STOPPED":
            goes_on = "the launch that follows it goes on"
        elif chain.state != "STOPPED" and not newest.settled:
            goes_on += ", or an answer to the one that asks"
        where += f"; that stage is over: {goes_on}"
    return where


def data(chain: ChainRow | None) -> dict[str, Any] | None:
    """A chain for programs: plain data for JSON; None for a study that is no stage."""
    if chain is None:
        return None
    begun = {stage.ordinal: stage for stage in chain.begun}
    return {
        "name": chain.name,
        "state": chain.state,
        "reason": chain.reason,
        "finished": chain.finished,
        "stages": [
            {
                "name": declared["name"],
                "trials": declared["spec"]["budget"]["trials"],
                "inherits": declared["inherits"],
                **_begun_data(begun.get(ordinal)),
            }
            for ordinal, declared in enumerate(chain.stages)
        ],
    }


def _begun_data(stage: StageRow | None) -> dict[str, Any]:
    if stage is None:
        return {"study": None, "state": None, "reason": None, "spent": 0, "inherited": None}
    return {
        "study": stage.study,
        "state": stage.state,
        "reason": stage.reason,
        "spent": stage.spent,
        "inherited": stage.inherited.to_json(),
    }


def how_to_go_on(call: Call, chain: str) -> str:
    """How to go on with a chain that waits, or to end it."""
    stop = hints.command(call, "stop", f"study.name={chain}")
    return f"to go on with the stages: the same command; to end them here: {stop}"
