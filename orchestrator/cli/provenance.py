"""Where a trial's value came from: machine, code, seed and artifacts, and how to reproduce it."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from orchestrator.model import count_label, value_label

if TYPE_CHECKING:
    from orchestrator.store import CodeRow, Reading, StudyRow, TrialRow

_MOST_FILES: Final = 5
_MOST_RANGES: Final = 8


def of_trials(store: Reading, row: StudyRow, trials: Sequence[TrialRow]) -> list[dict[str, Any]]:
    """Each trial's seed and facts (None if not recorded), artifacts, and `rerun` command."""
    artifacts = store.reads.artifacts(row.study_id, [trial.number for trial in trials])
    found = []
    for trial in trials:
        facts = store.reads.attempts(row.study_id, trial.number)[-1].facts
        again = f"orchestrator rerun study.name={shlex.quote(row.name)} trial={trial.number}"
        seed = None if facts is None else facts.get("seed")
        found.append(
            {"seed": seed, "facts": facts, "artifacts": artifacts[trial.number], "rerun": again}
        )
    return found


def comment(origin: Mapping[str, Any]) -> str:
    """The same for people, as lines of a YAML comment."""
    facts = origin["facts"]
    lines = []
    if facts is not None:
        lines += [_where(facts), f"{_code(facts.get('git'))}, seed {facts.get('seed')}"]
    lines += [
        f"artifact {value_label(record['filename'])}: {record['artifact_id']}"
        for record in origin["artifacts"]
    ]
    return "\n".join(f"# {line}" for line in [*lines, f"rerun: {origin['rerun']}"])


def _where(facts: Mapping[str, Any]) -> str:
    device, threads, duration = facts.get("device"), facts.get("threads"), facts.get("duration_s")
    parts = [f"ran on {facts.get('host')}"]
    if device:
        parts.append(str(device.get("name")))
    if threads:
        parts.append(count_label(threads, "thread"))
    if duration is not None:
        parts.append(f"{duration:.1f} s")
    for key, of in (("peak_memory_bytes", "of memory"), ("peak_device_bytes", "on the device")):
        if facts.get(key) is not None:
            parts.append(f"{facts[key] / 1e6:.0f} MB {of}")
    return ", ".join(parts)


def _code(git: Mapping[str, Any] | None) -> str:
    if git is None:
        return "no repository"
    return f"commit {git['commit'][:12]}{' with changes' if git['dirty'] else ''}"


def change_since(rows: Sequence[CodeRow], now: Mapping[str, Any]) -> list[str]:
    """Which trials of the study ran code that differs from `now`, one line per version."""
    return [
        f"the objective's code has changed since {trial_ranges(row.numbers)}: {changed}"
        for row in rows
        if (changed := _changed(_of_row(row), now))
    ]


def changes_within(rows: Sequence[CodeRow]) -> str | None:
    """A note that trials of a study ran different code, and which.

    None if no difference is recorded.
    """
    if not rows:
        return None
    parts = [f"{trial_ranges(rows[0].numbers)} ran {_described(_of_row(rows[0]))}"]
    for before, row in itertools.pairwise(rows):
        if changed := _changed(_of_row(before), _of_row(row)):
            parts.append(f"{trial_ranges(row.numbers)} ran different code: {changed}")
    if len(parts) == 1:
        return None
    return f"the objective's code is not the same in all trials: {'; '.join(parts)}"


def code_data(rows: Sequence[CodeRow]) -> list[dict[str, Any]]:
    """The same for programs: plain data for JSON."""
    return [{"git": row.git, "source": row.source, "trials": _runs_of(row.numbers)} for row in rows]


def trial_ranges(numbers: Sequence[int]) -> str:
    """``trial 3``, ``trials 0–23, 30``.

    Of many ranges, it has the first few and the number of trials in the others.
    """
    runs = _runs_of(numbers)
    ranges = [
        str(first) if first == last else f"{first}–{last}" for first, last in runs[:_MOST_RANGES]
    ]
    more = sum(last - first + 1 for first, last in runs[_MOST_RANGES:])
    text = f"trial{'s' if len(numbers) > 1 else ''} {', '.join(ranges)}"
    return f"{text} and {more} more" if more else text


def _runs_of(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """The first and last number of each unbroken run; `numbers` are in order."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _of_row(row: CodeRow) -> dict[str, Any]:
    return {"git": row.git, "source": row.source}


def _changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In a few words, what differs between the code then and now; empty if nothing is known to."""
    old, new = then.get("git"), now.get("git")
    # Hashes of the source files decide where both have them: a commit may not touch the objective.
    if then.get("source") and now.get("source"):
        files = _changed_files(then["source"], now["source"])
        if not files:
            return ""
    elif not old or not new or _commit(old) == _commit(new):
        return ""
    else:
        files = ""
    if old and new and old["commit"] != new["commit"]:
        commits = f"commit {_commit(old)} → {_commit(new)}"
    else:
        commits = "not committed" if old or new else ""
    return f"{files} ({commits})" if files and commits else files or commits


def _changed_files(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The source files that differ, or the hash of all where single ones are not recorded.

    Empty if none does.
    """
    if then["hash"] == now["hash"]:
        return ""
    before, after = then["files"], now["files"]
    names = (
        [name for name in sorted(before | after) if before.get(name) != after.get(name)]
        if before and after
        else []
    )
    more = f" and {len(names) - _MOST_FILES} more" if len(names) > _MOST_FILES else ""
    return (
        f"{', '.join(names[:_MOST_FILES])}{more}"
        if names
        else f"{then['hash'][:8]} → {now['hash'][:8]}"
    )


def _described(code: Mapping[str, Any]) -> str:
    if code.get("git") is not None:
        return f"commit {_commit(code['git'])}"
    return f"code {code['source']['hash'][:8]}" if code.get("source") else "unknown code"


def _commit(git: Mapping[str, Any]) -> str:
    return f"{git['commit'][:7]}{' with changes' if git['dirty'] else ''}"


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has changed of all that may change a result: ``torch 2.13.0 (then 2.12.1)``."""
    before, after = _flat(then), _flat(now)
    names = [*after, *(name for name in before if name not in after)]
    changed = [name for name in names if before.get(name) != after.get(name)]

    found = []
    both = then.get("source") and now.get("source")
    if both and (files := _changed_files(then["source"], now["source"])):
        found.append(f"the objective's code ({files})")
    for name in changed:
        found.append(f"{name} {_label(after.get(name))} (then {_label(before.get(name))})")
    return found


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    git, device = facts.get("git") or {}, facts.get("device") or {}
    code = {"commit": git.get("commit"), "uncommitted changes": git.get("dirty")}
    machine = {
        "device": device.get("name"),
        **{key: facts.get(key) for key in ("threads", "host", "platform", "python", "cuda")},
    }
    return {**code, **machine, **facts.get("packages", {})}


def _label(value: Any) -> str:
    words = {None: "none", True: "yes", False: "no"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
