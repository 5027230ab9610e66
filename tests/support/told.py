"""A study with something to tell, made in seconds: trials of every outcome, with curves, attempts
and devices, as workers would have left them.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import psycopg2.extensions
from psycopg2.extras import execute_values

from orchestrator.model import Axis, Budget, Searched, StudySpec
from orchestrator.search import parameters
from orchestrator.settings import sampler_settings
from orchestrator.store import Store
from tests.support.studies import spec

BEGUN = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
MESSAGES = (
    "ValueError: loss is nan after step {0}",
    "CUDA out of memory. Tried to allocate {0} MiB",
    "exit code 1",
)
DEVICES = [(f"node{h}", f"GPU-{h}{k}c3e91b2-77aa") for h in range(2) for k in range(4)]


def told(name: str = "told", per_cell: int = 33, **changes: Any) -> StudySpec:
    """A study of 30 cells: 5 batch sizes, 3 models, 2 optimizers; four searched parameters."""
    grid = (
        Axis("data.batch_size", (32, 64, 128, 256, 512)),
        Axis("model.name", ("resnet", "vit", "mixer")),
        Axis("optim.name", ("adamw", "sam")),
    )
    made: dict[str, Any] = {
        "metrics": ("val_accuracy",),
        "bounds": ((0.0, 1.0),),
        "params": {
            "data": {"batch_size": 64},
            "model": {"name": "resnet", "dropout": 0.1, "activation": "relu"},
            "optim": {"name": "adamw", "lr": 0.01, "weight_decay": 1e-4},
        },
        "grid": grid,
        "search": (
            Searched("optim.lr", "float", 1e-5, 1e-1, log=True),
            Searched("optim.weight_decay", "float", 1e-6, 1e-2, log=True),
            Searched("model.dropout", "float", 0.0, 0.5),
            Searched("model.activation", "categorical", choices=("relu", "gelu", "tanh")),
        ),
        "sampler": sampler_settings("tpe"),
        "budget": Budget(30 * per_cell, per_cell, max_failures_at_start=None),
        **changes,
    }
    return spec(name, **made)


@dataclass(frozen=True)
class _Drawn:
    """One trial as it will be written."""

    ordinal: int
    cell: dict[str, Any]
    params: dict[str, Any]
    state: str
    value: float
    feasible: bool


def fill(store: Store, made: StudySpec, *, steps: int = 30, seed: int = 0) -> int:
    """Launches the study and gives every ticket its trial, and some of them a failed one before;
    returns the study's id.
    """
    study_id = store.studies.launch(made).study_id
    dice = random.Random(seed)
    cells = list(made.cells())
    n = made.budget.trials
    drawn: list[_Drawn] = []
    for ordinal in range(n):
        cell = cells[ordinal % len(cells)]
        if ordinal >= len(cells) and dice.random() < 0.05:
            drawn.append(_draw(made, dice, ordinal, cell, "FAIL", ordinal / n))
        one = _draw(made, dice, ordinal, cell, "COMPLETE", ordinal / n)
        if ordinal >= len(cells) and one.value < 0.85 and dice.random() < 0.6:
            one = replace(one, state="PRUNED")
        drawn.append(one)
    with _superuser(store.url) as cursor:
        _write(cursor, study_id, made, drawn, dice, steps)
    return study_id


def _draw(
    made: StudySpec, dice: random.Random, ordinal: int, cell: dict[str, Any], state: str, age: float
) -> _Drawn:
    width = 1.6 - 1.1 * age  # later trials lie closer to what is good
    batch = cell.get("data.batch_size", 64)
    center = -3.0 + 0.5 * math.log10(batch / 64) + (0.4 if cell.get("optim.name") == "sam" else 0)
    params: dict[str, Any] = dict(cell)
    loss = 0.06 + 0.02 * {"resnet": 0.0, "vit": 0.35, "mixer": 1.6}.get(
        cell.get("model.name", ""), 0.0
    )
    loss += 0.004 * abs(math.log2(batch / 128)) - (
        0.006 if cell.get("optim.name") == "sam" else 0.0
    )
    for searched in made.search:
        if searched.path.endswith("lr"):
            lr = 10 ** min(-1.0, max(-5.0, dice.gauss(center, 0.7 * width)))
            params[searched.path] = lr
            loss += 0.05 * (math.log10(lr) - center) ** 2
        elif searched.kind == "categorical":
            choice = dice.choice(searched.choices)
            params[searched.path] = choice
            loss += {"relu": 0.0, "gelu": 0.002, "tanh": 0.02}.get(str(choice), 0.0)
        elif searched.log:
            params[searched.path] = 10 ** dice.uniform(
                math.log10(float(searched.low or 1e-9)), math.log10(float(searched.high or 1))
            )
        else:
            x = dice.uniform(float(searched.low or 0), float(searched.high or 1))
            params[searched.path] = x
            loss += 0.08 * (x - 0.15) ** 2
    value = max(0.0, 1.0 - loss - abs(dice.gauss(0, 0.004)))
    return _Drawn(ordinal, cell, params, state, value, dice.random() > 0.02)


def _write(
    cursor: psycopg2.extensions.cursor,
    study_id: int,
    made: StudySpec,
    drawn: list[_Drawn],
    dice: random.Random,
    steps: int,
) -> None:
    cursor.execute("SELECT coalesce(max(trial_id), 0) FROM trials")
    (first_id,) = cursor.fetchone() or (0,)
    cursor.execute(
        "SELECT ordinal, cell_id FROM orchestrator.cell WHERE study_id = %s", (study_id,)
    )
    cell_ids = dict(cursor.fetchall())
    cursor.execute(
        "SELECT ordinal, ticket_id FROM orchestrator.ticket WHERE study_id = %s", (study_id,)
    )
    tickets = dict(cursor.fetchall())
    workers = []
    for k, (host, _) in enumerate(DEVICES):
        cursor.execute(
            "INSERT INTO orchestrator.worker (token, host, process_scope, pid, pid_started, ttl_s,"
            " state, reason, lease_until, ended_at)"
            " VALUES (%s, %s, 'gone', %s, 1, 60, 'GONE', 'ended in order', now(), now())"
            " RETURNING worker_id",
            (1000 + k, host, k + 1),
        )
        workers.append((cursor.fetchone() or (0,))[0])

    declared = parameters(made)
    ordinals = {json.dumps(cell): k for k, cell in enumerate(made.cells())}
    free = [BEGUN + timedelta(seconds=7 * k) for k in range(len(DEVICES))]
    rows: dict[str, list[tuple[Any, ...]]] = {
        name: []
        for name in ("trials", "ours", "params", "values", "reports", "attempts", "attrs", "users")
    }
    counts = {ordinal: [0, 0, 0] for ordinal in cell_ids}
    for number, one in enumerate(drawn):
        trial_id = first_id + 1 + number
        ordinal = ordinals[json.dumps(one.cell)]
        device = min(range(len(DEVICES)), key=lambda k: free[k])
        whole = 240 + 3 * math.sqrt(one.cell.get("data.batch_size", 64)) + dice.uniform(0, 90)
        part = {"COMPLETE": 1.0, "PRUNED": 0.3, "FAIL": dice.uniform(0.05, 0.9)}[one.state]
        attempts = 1
        if dice.random() < 0.03:
            start = free[device]
            free[device] += timedelta(seconds=whole * dice.uniform(0.1, 0.6))
            rows["attempts"].append((trial_id, 1, device, start, free[device], "lost", False))
            attempts = 2
        start = free[device]
        end = free[device] = start + timedelta(seconds=whole * part)
        free[device] += timedelta(seconds=dice.uniform(1, 8))
        outcome = {"COMPLETE": "completed", "PRUNED": "pruned", "FAIL": "failed"}[one.state]
        rows["attempts"].append((trial_id, attempts, device, start, end, outcome, True))
        naive = (start.replace(tzinfo=None), end.replace(tzinfo=None))
        rows["trials"].append((trial_id, number, study_id, one.state, *naive))
        message = None
        if one.state == "FAIL":
            message = dice.choice(MESSAGES).format(dice.randrange(1000))
            kind = json.dumps({"kind": "exception", "message": message})
            rows["users"].append((trial_id, "orchestrator:failure", kind))
        rows["ours"].append(
            (
                study_id,
                tickets[one.ordinal],
                cell_ids[ordinal],
                one.state,
                one.state != "FAIL",
                number,
                trial_id,
                2 * number + 2,
                2 * number + 1,
                json.dumps(one.params),
                number,
                attempts,
                attempts - 1,
                message,
                start,
                end,
            )
        )
        for path, value in one.params.items():
            param = declared[path].param(declared[path].internal(value))
            rows["params"].append((trial_id, path, param.internal, param.distribution))
        if one.state == "COMPLETE":
            rows["values"].append((trial_id, 0, one.value, "FINITE"))
        if not one.feasible:
            rows["attrs"].append((trial_id, "constraints:latency", "0.5"))
        for step in range(1, max(1, round(steps * part)) + 1):
            reached = one.value * (1 - math.exp(-4.0 * step / steps)) / (1 - math.exp(-4.0))
            rows["reports"].append((trial_id, step, reached, "FINITE"))
        counts[ordinal][("COMPLETE", "PRUNED", "FAIL").index(one.state)] += 1

    _insert(
        cursor,
        "trials (trial_id, number, study_id, state, datetime_start, datetime_complete)",
        rows["trials"],
    )
    _insert(
        cursor,
        "orchestrator.trial (study_id, ticket_id, cell_id, state, holds_ticket, number,"
        " optuna_trial_id, seq, created_seq, values, token, attempts, lost, failure,"
        " claimed_at, ended_at)",
        rows["ours"],
    )
    _insert(
        cursor,
        "trial_params (trial_id, param_name, param_value, distribution_json)",
        rows["params"],
    )
    _insert(cursor, "trial_values (trial_id, objective, value, value_type)", rows["values"])
    _insert(
        cursor,
        "trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)",
        rows["reports"],
    )
    _insert(cursor, "trial_system_attributes (trial_id, key, value_json)", rows["attrs"])
    _insert(cursor, "trial_user_attributes (trial_id, key, value_json)", rows["users"])
    cursor.execute(
        "SELECT optuna_trial_id, trial_id FROM orchestrator.trial WHERE study_id = %s", (study_id,)
    )
    ours = dict(cursor.fetchall())
    facts = [
        json.dumps({"device": {"key": key, "kind": "gpu", "name": "NVIDIA H200"}, "host": host})
        for host, key in DEVICES
    ]
    _insert(
        cursor,
        "orchestrator.attempt (trial_id, attempt, worker_id, host, runs_dir, started_at, ended_at,"
        " outcome, device_name, facts)",
        [
            (
                ours[trial],
                attempt,
                workers[device],
                DEVICES[device][0],
                "/nowhere",
                start,
                end,
                outcome,
                "NVIDIA H200",
                facts[device] if known else None,
            )
            for trial, attempt, device, start, end, outcome, known in rows["attempts"]
        ],
    )
    cursor.execute("UPDATE orchestrator.ticket SET state = 'LIVE' WHERE study_id = %s", (study_id,))
    cursor.execute(
        "UPDATE orchestrator.ticket SET state = 'SPENT' WHERE study_id = %s", (study_id,)
    )
    for ordinal, (completed, pruned, failed) in counts.items():
        cursor.execute(
            "UPDATE orchestrator.cell SET completed = %s, pruned = %s, failed = %s"
            " WHERE cell_id = %s",
            (completed, pruned, failed, cell_ids[ordinal]),
        )
    cursor.execute(
        "UPDATE orchestrator.study SET news = %s, state = 'FINISHED', reason = 'budget spent',"
        " created_at = %s, launched_at = %s WHERE study_id = %s",
        (2 * len(drawn) + 2, BEGUN, BEGUN, study_id),
    )
    cursor.execute(
        "SELECT setval(pg_get_serial_sequence('trials', 'trial_id'),"
        " (SELECT max(trial_id) FROM trials))"
    )


def _insert(cursor: psycopg2.extensions.cursor, what: str, rows: list[tuple[Any, ...]]) -> None:
    if rows:
        execute_values(cursor, f"INSERT INTO {what} VALUES %s", rows, page_size=1000)


@contextmanager
def _superuser(url: str) -> Iterator[psycopg2.extensions.cursor]:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    try:
        with connection, connection.cursor() as cursor:
            # no look at each foreign key: they are right
            cursor.execute("SET LOCAL session_replication_role = replica")
            yield cursor
    finally:
        connection.close()
