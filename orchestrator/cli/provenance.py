"""Where a trial's value came from: what it ran on and took, what it left, and how to have it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.model import value_label
from orchestrator.store import Store, StudyRow, TrialRow


def of_trials(store: Store, row: StudyRow, trials: Sequence[TrialRow]) -> list[dict[str, Any]]:
    """For each trial its seed and facts (null where nobody wrote them down), its artifacts, and the command to run it again."""
    artifacts = store.reads.artifacts(row.study_id, [trial.number for trial in trials])
    found = []
    for trial in trials:
        facts = store.reads.attempts(row.study_id, trial.number)[-1].facts
        again = f"orchestrator rerun study.name={shlex.quote(row.name)} trial={trial.number}"
        seed = None if facts is None else facts.get("seed")
        found.append({"seed": seed, "facts": facts, "artifacts": artifacts[trial.number], "rerun": again})
    return found


def comment(origin: Mapping[str, Any]) -> str:
    """The same for people, as lines of a YAML comment."""
    facts = origin["facts"]
    lines = [] if facts is None else [_where(facts), f"{_code(facts.get('git'))}, seed {facts.get('seed')}"]
    lines += [f"artifact {value_label(record['filename'])}: {record['artifact_id']}" for record in origin["artifacts"]]
    return "\n".join(f"# {line}" for line in [*lines, f"again: {origin['rerun']}"])


def _where(facts: Mapping[str, Any]) -> str:
    device, threads, duration = facts.get("device"), facts.get("threads"), facts.get("duration_s")
    told = [f"ran on {facts.get('host')}", *([str(device.get("name"))] if device else [])]
    told += [f"{threads} threads"] if threads else []
    told += [f"{duration:.1f} s"] if duration is not None else []
    for key, of in (("peak_memory_bytes", "of memory"), ("peak_device_bytes", "on the device")):
        told += [f"{facts[key] / 1e6:.0f} MB {of}"] if facts.get(key) is not None else []
    return ", ".join(told)


def _code(git: Mapping[str, Any] | None) -> str:
    return "no repository" if git is None else f"commit {git['commit'][:12]}{' with changes' if git['dirty'] else ''}"


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is another now than then, of all that may change a result: ``torch 2.13.0 (then 2.12.1)``."""
    before, after = _flat(then), _flat(now)
    names = [*after, *(name for name in before if name not in after)]
    changed = [name for name in names if before.get(name) != after.get(name)]
    return [f"{name} {_said(after.get(name))} (then {_said(before.get(name))})" for name in changed]


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    git, device = facts.get("git") or {}, facts.get("device") or {}
    code = {"commit": git.get("commit"), "uncommitted changes": git.get("dirty")}
    machine = {
        "device": device.get("name"),
        **{key: facts.get(key) for key in ("threads", "host", "platform", "python", "cuda")},
    }
    return {**code, **machine, **facts.get("packages", {})}


def _said(value: Any) -> str:
    words = {None: "none", True: "yes", False: "no"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
