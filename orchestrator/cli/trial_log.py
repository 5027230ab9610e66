"""The command `logs`: a trial's output, as it was printed."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

from orchestrator.cli.call import Call
from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.runner.protocol import rundir


def run(call: Call) -> int:
    """Prints a trial's log unchanged: of its last attempt, or of `attempt=K`."""
    number, attempt = call.number("trial"), call.number("attempt")
    if number is None:
        raise ConfigError("logs needs the trial's number: orchestrator logs trial=N")
    with call.store() as store:
        row = store.reads.find(call.study_name)
        attempts = store.reads.attempts(row.study_id, number)

    matching = [a for a in attempts if attempt in (None, a.attempt)]
    if not matching:
        raise ConfigError(f"attempt={attempt}: trial {number} had {len(attempts)} attempts")
    chosen = matching[-1]
    run_dir = rundir.attempt_dir(
        Path(chosen.runs_dir), row.folder, number, chosen.attempt, chosen.token
    )
    path = rundir.log_path(run_dir)

    if call.json:
        data = {
            "trial": number,
            "attempt": chosen.attempt,
            "host": chosen.host,
            "log": str(path),
            "facts": chosen.facts,
        }
        print(json.dumps(data))
        return 0
    try:
        with path.open("rb") as log:
            while block := log.read(1 << 16):
                sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
    except FileNotFoundError:
        elsewhere = "" if chosen.host == socket.gethostname() else f"; it ran on {chosen.host}"
        raise OrchestratorError(f"trial {number}: no log at {path} here{elsewhere}") from None
    return 0
