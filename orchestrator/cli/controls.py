"""The commands that change a running study: pause, resume, stop, retry, enqueue."""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from orchestrator import search
from orchestrator.cli import hints, probes
from orchestrator.cli.call import Call
from orchestrator.cli.named import study_of
from orchestrator.errors import ConfigError
from orchestrator.model import cell_label
from orchestrator.worker.maintenance import Maintenance

if TYPE_CHECKING:
    from orchestrator.store import ChainRow, Retried, Store, StudyRow


def pause(call: Call) -> int:
    """No trial of the study starts until `resume`; with ``--now`` running trials are given back.

    Of a chain: of its newest stage, and of the next one if that begins.
    """
    now = "--now" in call.switches

    def change(store: Store, study_id: int) -> None:
        store.interventions.pause(study_id, who(), now=now)

    return _change(call, change, "PAUSED", f"paused by {who()}")


def resume(call: Call) -> int:
    """Ends a pause, of a study or a chain."""

    def change(store: Store, study_id: int) -> None:
        store.interventions.resume(study_id, who())

    return _change(call, change, "ACTIVE", f"resumed by {who()}")


def stop(call: Call) -> int:
    """Ends the study once its running trials have ended; of a chain its newest stage, and no other
    begins.

    With ``--now`` they are given back first.
    """
    now = "--now" in call.switches

    def change(store: Store, study_id: int) -> None:
        store.interventions.stop(study_id, who(), now=now)
        # Otherwise trials of workers that died on this host would hold the study up until their
        # leases expire.
        Maintenance(store, 0.0).sweep()

    return _change(call, change, "STOPPED", f"stopped by {who()}")


def enqueue(call: Call) -> int:
    """Adds a trial by hand, on top of the budget."""
    required_name(call)
    if not call.composed.values:
        raise ConfigError(
            "enqueue needs the trial's parameters: orchestrator enqueue study.name=… optim.lr=0.01"
        )
    with call.store() as store:
        row = study_of(call, store)
        spec = store.reads.spec(row.study_id)
        named = {axis.group.lstrip("+"): axis.path for axis in spec.grid}
        typed = {named.get(name, name): value for name, value in call.composed.values.items()}

        # Parameters that the objective suggests as it runs are declared nowhere: their
        # distributions come from earlier trials.
        stored = store.suggested.distributions(row.study_id)
        later = search.values_by_hand(search.parameters(spec), typed, stored, spec.params)
        declared = {name: value for name, value in typed.items() if name not in later}
        cell, given = search.by_hand(spec, declared)
        given |= later

        store.interventions.enqueue(row.study_id, cell, given)
        values = {**cell, **given}
        measured = store.measured.of(row.study_id) if spec.probes else []
        remarks = probes.outside(spec, measured, cell, given)
        text = "; ".join([f"enqueued {cell_label(values)}", *remarks])
        data = {"enqueued": values, **({"remarks": remarks} if remarks else {})}
        report(call, store, row, text, data)
    return 0


def retry(call: Call) -> int:
    """Runs one failed trial again, or all of them."""
    required_name(call)
    wanted = call.words.get("trial")
    if wanted is None:
        raise ConfigError(
            "retry needs trial=N, or trial=failed for all failed trials: orchestrator retry "
            "study.name=… trial=failed"
        )
    number = None if wanted == "failed" else call.number("trial", or_word="failed")
    with call.store() as store:
        row = study_of(call, store)
        retried = store.interventions.retry(row.study_id, number)
        runs = [{"trial": r.number, "on_top_of_budget": r.extra} for r in retried if not r.left]
        data = {"retried": runs, "left": [r.number for r in retried if r.left]}
        report(call, store, row, retried_text(retried), data)
    return 0


def retried_text(retried: list[Retried]) -> str:
    """What a retry does, for people."""
    runs, left = [r for r in retried if not r.left], [r for r in retried if r.left]
    parts = []
    if runs:
        extra = sum(r.extra for r in runs)
        on_top = f" ({extra} on top of the budget)" if extra else ""
        parts.append(f"run again as new trials: {', '.join(str(r.number) for r in runs)}{on_top}")
    if left:
        parts.append(
            f"not run again: {', '.join(str(r.number) for r in left)}, because other cells have "
            "used the share of budget.trials that their closed cells gave up; launch with a "
            "larger budget.trials first"
        )
    return "; ".join(parts) or "no failed trial is left to run again"


def _change(
    call: Call,
    change: Callable[[Store, int], None],
    state: Literal["ACTIVE", "PAUSED", "STOPPED"],
    reason: str,
) -> int:
    """Changes a study; of a chain first what becomes of its next stages (`state`, and the `reason`
    for it), then the study of its newest stage, unless that is over.
    """
    name = required_name(call)
    with call.store() as store:
        chain = store.chains.find(name)
        if chain is not None:
            store.stages.hold(name, state, reason)
            chain = store.chains.find(name)
            if chain is not None and (chain.newest is None or chain.newest.state == "FINISHED"):
                _report_chain(call, chain)
                return 0
        row = store.reads.find(name)
        change(store, row.study_id)
        now = store.reads.find(row.name)
        text = f"{now.state.lower()}{f' ({now.reason})' if now.reason else ''}"
        if now.state != "ACTIVE":
            for trial in store.reads.trials(row.study_id, live_only=True):
                if trial.worker_id is not None:
                    text += f"\ntrial {trial.number} is still held by worker {trial.worker_id}"
        if chain is not None:
            text += f"\n{_of_next_stages(chain)}"
        report(call, store, row, text, {})
    return 0


def _report_chain(call: Call, chain: ChainRow) -> None:
    """Prints what becomes of a chain of which no stage runs."""
    if call.json:
        data = {"chain": chain.name, "state": chain.state, "reason": chain.reason}
        print(json.dumps(data, indent=2))
        return
    newest = chain.newest
    where = "no stage has begun" if newest is None else f"stage {newest.name} is over"
    print(f"chain {chain.name}: {where}; {_of_next_stages(chain)}")


def _of_next_stages(chain: ChainRow) -> str:
    """What becomes of the stages of a chain that have not begun."""
    first = 0 if chain.newest is None else chain.newest.ordinal + 1
    names = ", ".join(stage["name"] for stage in chain.stages[first:])
    if not names:
        return f"it is the last stage of chain {chain.name}"
    what = {
        "ACTIVE": "follow it, as long as a launch does",
        "PAUSED": "begin paused",
        "STOPPED": "do not begin; launching the chain again continues it",
    }[chain.state]
    return f"the next stages of chain {chain.name} ({names}) {what}"


def report(call: Call, store: Store, row: StudyRow, text: str, data: Mapping[str, object]) -> None:
    """Prints what was done, how the study stands, and whether a worker is there to act on it."""
    now = store.reads.find(row.name)
    workers = len(store.reads.workers())
    if call.json:
        study = {"study": now.name, "state": now.state, "reason": now.reason}
        print(json.dumps({**study, **data, "workers": workers}, indent=2))
        return
    print(f"study {row.name}: {text}")
    if any(data.values()) and now.state == "PAUSED":
        resume = hints.command(call, "resume", f"study.name={row.name}")
        print(f"it is {now.reason}; continue it with: {resume}")
    elif now.state == "ACTIVE" and any(data.values()) and not workers:
        print(f"no worker is running; start one with: {hints.command(call, 'worker')}")


def required_name(call: Call) -> str:
    """The name of the study to change.

    Raises:
        ConfigError: it was not given; a change needs an explicit name.
    """
    if call.study_name is None:
        raise ConfigError(f"study.name must be given: orchestrator {call.command} study.name=…")
    return call.study_name


def who() -> str:
    """Who does it, for the records: ``user@host``."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = "somebody"
    return f"{user}@{socket.gethostname()}"
