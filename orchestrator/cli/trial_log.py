"""The command `logs`: a trial's output, as it was printed."""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from orchestrator.cli import probes
from orchestrator.cli.call import Call
from orchestrator.cli.named import study_of
from orchestrator.errors import (
    ConfigError,
    OrchestratorError,
    StoreUnavailableError,
    did_you_mean,
)
from orchestrator.model import count_label
from orchestrator.runner.protocol import rundir

if TYPE_CHECKING:
    from orchestrator.store import AttemptRow, Reading, Store, StudyRow

_BLOCK: Final = 1 << 16
_READ_EVERY_S: Final = 0.2
_ASK_EVERY_S: Final = 1.0
_MARK: Final = 256
_ENDED: Final = ("COMPLETE", "PRUNED", "FAIL")


def run(call: Call) -> int:
    """Prints a trial's log unchanged: of its last attempt, or of `attempt=K`.

    With ``-f``, goes on until the trial has ended, or the attempt that was named. All else that is
    to be said goes to standard error.
    """
    number, attempt = call.number("trial"), call.number("attempt")
    if "probe" in call.words:
        return _of_probe(call, call.words["probe"])
    if "cell" in call.words:
        raise ConfigError(f"cell={call.words['cell']}: belongs to probe=NAME; a trial has a number")
    if number is None:
        raise ConfigError("logs needs the trial's number: orchestrator logs trial=N")
    follows = bool(call.switches & {"-f", "--follow"})
    if follows and call.json:
        raise ConfigError("-f follows the log itself; leave out --json")
    if follows:
        with call.store() as store:
            row, _ = _attempts(call, store, number, attempt)
            _Follower(store, row, number, attempt).run()
        return 0

    with call.reading() as reading:
        row, attempts = _attempts(call, reading, number, attempt)
    if not attempts:
        raise OrchestratorError(f"trial {number} of {row.name} has not begun yet")
    chosen = next((one for one in attempts if one.attempt == attempt), attempts[-1])
    path = _path(row, number, chosen)
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
    with _opened(path, number, chosen) as log:
        printed = _copy(log)
    if not printed:
        so_far = " so far" if chosen.outcome is None else ""
        _say(f"trial {number} printed nothing{so_far}{_which(chosen, attempts)}")
    return 0


def _of_probe(call: Call, name: str) -> int:
    """Prints the log of a probe's last attempt in a cell.

    Raises:
        ConfigError: a word that does not go with it, or the probe was not measured in that cell.
    """
    if others := [word for word in ("trial", "attempt") if word in call.words]:
        raise ConfigError(f"{others[0]}={call.words[others[0]]}: does not go with probe={name}")
    if call.switches & {"-f", "--follow"}:
        raise ConfigError("-f follows a trial's log; a probe's is printed as it is")
    cell = call.number("cell")
    if cell is None:
        raise ConfigError(f"probe={name}: needs the number of a cell: cell=N")
    with call.reading() as reading:
        row = study_of(call, reading)
        rows = reading.measured.of(row.study_id)
    found = [one for one in rows if one.name == name and one.cell == cell]
    if not found:
        names = {one.name for one in rows}
        guess = "" if name in names else did_you_mean(name, names)
        raise ConfigError(
            f"probe={name} cell={cell}: study {row.name} has measured no such probe there{guess}"
        )
    chosen = max(found, key=lambda one: one.started_at)
    path = probes.log_path(row, chosen)
    if call.json:
        facts = {"probe": name, "cell": cell, "host": chosen.host, "log": str(path)}
        print(json.dumps({**facts, "facts": chosen.facts}))
        return 0
    try:
        log = path.open("rb")
    except OSError as error:
        there = "" if chosen.host == socket.gethostname() else f"; it ran on {chosen.host}"
        raise OrchestratorError(f"probe {name}: {error.strerror} ({path}){there}") from error
    with log:
        if not _copy(log):
            _say(f"probe {name} printed nothing")
    return 0


def _attempts(
    call: Call, reading: Reading, number: int, attempt: int | None
) -> tuple[StudyRow, list[AttemptRow]]:
    """The study, and the attempts of the trial, of which `attempt` must be one."""
    row = study_of(call, reading)
    attempts = reading.reads.attempts(row.study_id, number)
    if attempt is not None and all(one.attempt != attempt for one in attempts):
        had = count_label(len(attempts), "attempt")
        raise ConfigError(f"attempt={attempt}: trial {number} has had {had}")
    return row, attempts


class _Follower:
    """Copies a log to standard output as it grows, and goes on with the next attempt's."""

    def __init__(self, store: Store, row: StudyRow, number: int, only: int | None) -> None:
        self._store = store
        self._row = row
        self._number = number
        self._only = only
        self._ask_at = 0.0
        self._attempts: list[AttemptRow] = []
        self._ended = False
        self._away = False

    def run(self) -> None:
        """Returns once the trial has ended, or the one attempt that is followed."""
        before: int | None = None
        while True:
            self._ask(at_once=True)
            chosen = self._next(before)
            if chosen is not None:
                if before is not None or chosen.attempt > 1:
                    _say(f"attempt {chosen.attempt} on {chosen.host}")
                outcome = self._follow(chosen)
                if outcome is not None:
                    _say(outcome)
                before = chosen.attempt
                if self._only is not None:
                    return
            elif self._ended:
                return
            else:
                if before is None:
                    before = 0
                    _say(f"trial {self._number} has not begun yet; waiting for it")
                time.sleep(_ASK_EVERY_S)

    def _next(self, before: int | None) -> AttemptRow | None:
        """The attempt to follow next; the last one to begin with."""
        if self._only is not None:
            return next(one for one in self._attempts if one.attempt == self._only)
        later = [one for one in self._attempts if before is None or one.attempt > before]
        if not later:
            return None
        return later[-1] if before is None else later[0]

    def _follow(self, chosen: AttemptRow) -> str | None:
        """Prints the attempt's log until it has ended.

        Returns:
            What to say of its end; None if the trial ended with it.
        """
        printed, mark = 0, b""
        path = _path(self._row, self._number, chosen)
        while not path.exists() and chosen.host == socket.gethostname() and self._runs(chosen):
            time.sleep(_READ_EVERY_S)  # it has just begun
            self._ask()
        with _opened(path, self._number, chosen) as log:
            while True:
                self._ask()
                now = self._now(chosen)
                if log.seek(0, 2) < printed:
                    printed = _after_cut(log, mark)
                log.seek(printed)
                while block := log.read(_BLOCK):
                    sys.stdout.buffer.write(block)
                    printed += len(block)
                    mark = (mark + block)[-_MARK:]
                sys.stdout.buffer.flush()
                if now.outcome is not None:
                    break
                time.sleep(_READ_EVERY_S)
        if not printed:
            _say(f"trial {self._number} printed nothing{_which(chosen, self._attempts)}")
        if self._ended and chosen.attempt == self._attempts[-1].attempt:
            return None
        why = f": {now.reason.splitlines()[0]}" if now.reason else ""
        waiting = "" if self._only is not None else "; waiting for the next attempt"
        return f"attempt {chosen.attempt} {now.outcome}{why}{waiting}"

    def _now(self, chosen: AttemptRow) -> AttemptRow:
        return next((a for a in self._attempts if a.attempt == chosen.attempt), chosen)

    def _runs(self, chosen: AttemptRow) -> bool:
        return self._now(chosen).outcome is None

    def _ask(self, *, at_once: bool = False) -> None:
        """Reads from the database, from time to time, how the trial stands.

        Raises:
            ConfigError: the trial is gone.
        """
        if not at_once and time.monotonic() < self._ask_at:
            return
        try:
            ended = self._store.reads.trials(self._row.study_id, number=self._number)
            self._attempts = self._store.reads.attempts(self._row.study_id, self._number)
            self._ended = bool(ended) and ended[0].state in _ENDED
            self._away = False
        except StoreUnavailableError as error:
            if not self._away:
                _say(f"{error}; the log is followed nevertheless")
            self._away = True
            self._store.revive()
        self._store.rest()
        self._ask_at = time.monotonic() + _ASK_EVERY_S


def _after_cut(log: BinaryIO, mark: bytes) -> int:
    """Where to go on in a log that was cut in its middle: after what was printed last (`mark`), or
    at the end.
    """
    end = log.seek(0, 2)
    start = max(0, end - 16 * _BLOCK)
    log.seek(start)
    found = log.read().rfind(mark)
    if found < 0:
        _say("the log was cut to its limit (runner.log_limit_mb); some lines are missing here")
        return end
    return start + found + len(mark)


def _path(row: StudyRow, number: int, chosen: AttemptRow) -> Path:
    return rundir.log_path(
        rundir.attempt_dir(Path(chosen.runs_dir), row.folder, number, chosen.attempt, chosen.token)
    )


def _opened(path: Path, number: int, chosen: AttemptRow) -> BinaryIO:
    """The log.

    Raises:
        OrchestratorError: it is on another host, or gone, or cannot be read.
    """
    try:
        return path.open("rb")
    except FileNotFoundError:
        if chosen.host == socket.gethostname():
            raise OrchestratorError(f"trial {number}: no log at {path}; was it deleted?") from None
        verb = "runs" if chosen.outcome is None else "ran"
        raise OrchestratorError(
            f"trial {number} {verb} on {chosen.host}: its log is there, at {path}"
        ) from None
    except OSError as error:
        raise OrchestratorError(f"trial {number}: {error.strerror} ({path})") from error


def _copy(log: BinaryIO) -> int:
    printed = 0
    while block := log.read(_BLOCK):
        sys.stdout.buffer.write(block)
        printed += len(block)
    sys.stdout.buffer.flush()
    return printed


def _which(chosen: AttemptRow, attempts: list[AttemptRow]) -> str:
    return f" in attempt {chosen.attempt}" if len(attempts) > 1 else ""


def _say(text: str) -> None:
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)
