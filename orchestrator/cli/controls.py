"""The commands that change a study under way: pause, resume, stop, retry, enqueue."""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Callable, Mapping

from orchestrator import search
from orchestrator.cli import hints
from orchestrator.cli.call import Call
from orchestrator.errors import ConfigError
from orchestrator.model import cell_label
from orchestrator.store import Retried, Store, StudyRow
from orchestrator.worker.maintenance import Maintenance


def pause(call: Call) -> int:
    """No trial of the study begins until `resume`."""
    return _change(
        call,
        lambda store, study_id: store.interventions.pause(
            study_id, _who(), now="--now" in call.switches
        ),
    )


def resume(call: Call) -> int:
    """Ends a pause."""
    return _change(call, lambda store, study_id: store.interventions.resume(study_id, _who()))


def stop(call: Call) -> int:
    """Ends the study once its running trials have ended; with ``--now`` they are given
    back first.
    """

    def change(store: Store, study_id: int) -> None:
        store.interventions.stop(study_id, _who(), now="--now" in call.switches)
        Maintenance(store, 0.0).sweep()  # also of workers that died on this host

    return _change(call, change)


def enqueue(call: Call) -> int:
    """Adds a trial by hand, on top of the budget."""
    name = _named(call)
    if not call.composed.values:
        raise ConfigError(
            "enqueue needs the parameters of the trial: orchestrator enqueue study.name=… "
            "optim.lr=0.01"
        )
    with call.store() as store:
        row = store.reads.find(name)
        spec = store.reads.spec(row.study_id)
        named = {axis.group.lstrip("+"): axis.path for axis in spec.grid}
        typed = {named.get(name, name): value for name, value in call.composed.values.items()}
        known = store.suggested.distributions(row.study_id)
        later = search.values_by_hand(search.parameters(spec), typed, known, spec.params)
        cell, given = search.by_hand(
            spec, {name: value for name, value in typed.items() if name not in later}
        )
        given |= later
        store.interventions.enqueue(row.study_id, cell, given)
        _say(
            call,
            store,
            row,
            f"enqueued {cell_label({**cell, **given})}",
            {"enqueued": {**cell, **given}},
        )
    return 0


def retry(call: Call) -> int:
    """Runs one failed trial again, or all of them."""
    name = _named(call)
    wanted = call.words.get("trial")
    if wanted is None:
        raise ConfigError(
            "retry needs the trial's number, or failed for all of them: orchestrator retry "
            "study.name=… trial=failed"
        )
    number = None if wanted == "failed" else call.number("trial", or_word="failed")
    with call.store() as store:
        row = store.reads.find(name)
        retried = store.interventions.retry(row.study_id, number)
        runs = [{"trial": r.number, "on_top_of_budget": r.extra} for r in retried if not r.left]
        data = {"retried": runs, "left": [r.number for r in retried if r.left]}
        _say(call, store, row, retried_text(retried), data)
    return 0


def retried_text(retried: list[Retried]) -> str:
    """What a retry does, for people."""
    runs, left = [r for r in retried if not r.left], [r for r in retried if r.left]
    said = []
    if runs:
        extra = sum(r.extra for r in runs)
        on_top = f" ({extra} on top of the budget)" if extra else ""
        said.append(f"runs again as new trials: {', '.join(str(r.number) for r in runs)}{on_top}")
    if left:
        said.append(
            "not run again, for other cells have spent what their closed cells left of "
            "budget.trials: "
            f"{', '.join(str(r.number) for r in left)}; launch with a larger budget.trials first"
        )
    return "; ".join(said) or "no failed trial is left to run again"


def _change(call: Call, change: Callable[[Store, int], None]) -> int:
    name = _named(call)
    with call.store() as store:
        row = store.reads.find(name)
        change(store, row.study_id)
        now = store.reads.find(name)
        running = [
            t for t in store.reads.trials(row.study_id, live_only=True) if t.worker_id is not None
        ]
        held = "".join(f"\ntrial {t.number} is still held by worker {t.worker_id}" for t in running)
        reason = f" ({now.reason})" if now.reason else ""
        said = f"{now.state.lower()}{reason}{held if now.state != 'ACTIVE' else ''}"
        _say(call, store, row, said, {})
    return 0


def _say(call: Call, store: Store, row: StudyRow, text: str, data: Mapping[str, object]) -> None:
    """What was done, how the study stands, and who will do it."""
    now = store.reads.find(row.name)
    workers = len(store.reads.workers())
    if call.json:
        print(
            json.dumps(
                {
                    "study": now.name,
                    "state": now.state,
                    "reason": now.reason,
                    **data,
                    "workers": workers,
                },
                indent=2,
            )
        )
        return
    print(f"study {row.name}: {text}")
    if any(data.values()) and now.state == "PAUSED":
        print(
            f"it is {now.reason}; go on with: "
            f"{hints.command(call, 'resume', f'study.name={row.name}')}"
        )
    elif now.state == "ACTIVE" and any(data.values()) and not workers:
        print(f"no worker runs now; start one with: {hints.command(call, 'worker')}")


def _named(call: Call) -> str:
    """The study to be changed, which must be named.

    Raises:
        ConfigError: it is not.
    """
    if call.study_name is None:
        raise ConfigError(f"study.name must be given: orchestrator {call.command} study.name=…")
    return call.study_name


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = "somebody"
    return f"{user}@{socket.gethostname()}"
