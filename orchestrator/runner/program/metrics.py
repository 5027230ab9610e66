"""A program's metrics: JSON lines that it prints or appends to a file, or text for a regex."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from orchestrator.program import Result
from orchestrator.runner.child.trial import Trial, TrialPruned
from orchestrator.runner.protocol.values import ResultError, as_number, as_step, preview

MAX_LINE: Final = 1 << 20
"""Maximum length of a line in bytes; longer ones go to the log but are not parsed."""

_MAX_ATTRIBUTES: Final = 1000
_PER_CALL: Final = 4 << 20
_ENDS: Final = re.compile(rb"[\r\n]")  # progress bars end their lines with \r


class Metrics:
    """Parses a program's lines, reports intermediate values to the trial, and finds the result.

    A line counts if it is a JSON object that contains a metric: the one that the rule names, else
    ``study.metric`` or, in a study with one objective, ``value``. A line with a ``step`` is an
    intermediate value; other keys are attributes.

    Args:
        trial: Gets the reports and, after each, is asked whether to prune, unless `asks` is False.
        metrics: Those of the study.
        rule: Where the result comes from.
    """

    def __init__(self, trial: Trial, metrics: tuple[str, ...], rule: Result) -> None:
        self.asks = True
        self.records = 0
        self._trial = trial
        self._metrics = metrics
        self._regex = re.compile(rule.regex) if rule.regex is not None else None
        self._rule = rule
        plain = (metrics[0], "value") if len(metrics) == 1 else ()
        self._keys = tuple(dict.fromkeys([*rule.metrics, *metrics, *plain]))
        self._plain = plain
        self._last: dict[str, float] = {}
        self._found: tuple[str | None, ...] | None = None
        self._attributes: dict[str, Any] = {}
        self._noted: set[str] = set()

    def printed(self, line: bytes) -> None:
        """Takes a line of standard output.

        Raises:
            TrialPruned: the pruner ends the trial after the step that the line reports.
        """
        self.searched(line)
        self.recorded(line)

    def searched(self, line: bytes) -> None:
        """Takes a line that is searched for the regex only."""
        if self._regex is not None:
            for match in self._regex.finditer(line.decode("utf-8", "replace")):
                self._found = match.groups()

    def recorded(self, line: bytes) -> None:
        """Takes a line that may be a JSON object.

        Raises:
            TrialPruned: see `printed`.
        """
        line = line.strip()
        if not line.startswith(b"{"):
            return
        # A program may print whatever it likes.
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if any(key in record for key in self._keys):
                self._take(record)

    def store_attributes(self) -> None:
        """Stores the last value of each other key, in lines that counted, as a user attribute."""
        for key, value in self._attributes.items():
            try:
                self._trial.set_user_attr(key, value)
            except (TypeError, ValueError) as error:
                self._note(key, str(error))

    def result(self) -> dict[str, float]:
        """The value of each metric of the study.

        Raises:
            ResultError: The program did not report one.
        """
        if self._regex is not None:
            return self._matched(self._regex.pattern)
        if self._rule.metrics:
            wanted = self._rule.metrics
        elif self._plain:
            wanted = ("",)
        else:
            wanted = self._metrics
        missing = [key for key in wanted if key not in self._last]
        if missing:
            key = missing[0] or self._metrics[0]
            example = json.dumps({"step": 3, key: 0.91})
            also = " (or with the key 'value')" if not missing[0] and key != "value" else ""
            rule = "objective.result.metric" if self._rule.metrics else "objective.result=last"
            raise ResultError(
                f"{rule}: the program ended without a value of {key!r}; print a line such as "
                f"{example}{also}"
            )
        return {metric: self._last[key] for metric, key in zip(self._metrics, wanted, strict=True)}

    def _matched(self, pattern: str) -> dict[str, float]:
        if self._found is None:
            raise ResultError(
                f"objective.result.regex={pattern!r} matched no line of the program's output"
            )
        values = {}
        for metric, text in zip(self._metrics, self._found, strict=True):
            try:
                values[metric] = float(text or "")
            except ValueError:
                raise ResultError(
                    f"objective.result.regex={pattern!r} found {text!r} for {metric!r}, which is "
                    "not a number"
                ) from None
        return values

    def _take(self, record: dict[str, Any]) -> None:
        self.records += 1
        numbers = {
            key: number for key in self._keys if (number := self._number(key, record)) is not None
        }
        self._last |= {
            key: number
            for key, number in numbers.items()
            if key not in self._plain or key in self._rule.metrics
        }
        plain = [numbers[key] for key in self._plain if key in numbers]
        self._last |= {"": plain[0]} if plain else {}
        for key, value in record.items():
            if key not in (*self._keys, "step"):
                if key not in self._attributes and len(self._attributes) >= _MAX_ATTRIBUTES:
                    text = (
                        f"more than {_MAX_ATTRIBUTES:,} keys; {key!r} and further new keys are "
                        "not stored"
                    )
                    self._note("", text)
                    break
                self._attributes[key] = value
        if numbers and len(self._metrics) == 1 and record.get("step") is not None:
            self._report(next(iter(numbers.values())), record["step"])

    def _number(self, key: str, record: dict[str, Any]) -> float | None:
        if key not in record:
            return None
        try:
            return as_number(record[key])
        except (TypeError, ValueError) as error:
            self._note(key, f"{error}; the line {preview(record)} was ignored for this key")
            return None

    def _report(self, value: float, step: Any) -> None:
        try:
            step = as_step(int(step) if isinstance(step, float) and step.is_integer() else step)
        except (TypeError, ValueError) as error:
            self._note("step", f"{error}; the line was not reported")
            return
        self._trial.report(value, step)
        if self.asks and self._trial.should_prune():
            raise TrialPruned

    def _note(self, key: str, text: str) -> None:
        """Adds a note to the trial's log, once per key."""
        if key not in self._noted:
            self._noted.add(key)
            note = f"[orchestrator: metrics: {key + ': ' if key else ''}{text}]"
            print(note, file=sys.stderr, flush=True)  # noqa: T201


class Lines:
    """Splits a stream of bytes into lines, and drops those longer than `MAX_LINE`.

    With `holding`, lines that do not contain these bytes may be dropped as well, so that a program
    that prints a lot without metrics is not slowed down.
    """

    def __init__(self, holding: bytes = b"") -> None:
        self._holding = holding
        self._begun: list[bytes] = []
        self._length = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without their line ends."""
        lines = []
        *ended, rest = _ENDS.split(data) if self._holding in data else self._edges(data)
        for part in ended:
            self._add(part)
            line = self.rest()
            if line:
                lines.append(line)
        self._add(rest)
        return lines

    def rest(self) -> bytes:
        """Takes the unfinished line, if any."""
        line = b"".join(self._begun)
        self._begun, self._length = [], 0
        return line

    @staticmethod
    def _edges(data: bytes) -> list[bytes]:
        """The bytes before the first line end and those after the last."""
        first = _ENDS.search(data)
        if first is None:
            return [data]
        return [data[: first.start()], data[max(data.rfind(b"\n"), data.rfind(b"\r")) + 1 :]]

    def _add(self, part: bytes) -> None:
        self._length += len(part)
        if self._length > MAX_LINE:
            self._begun = []
        elif part:
            self._begun.append(part)


class MetricsFile:
    """Reads what a program appends to the file at `path`, if it exists.

    A rewritten file is read from its start.
    """

    def __init__(self, path: Path, metrics: Metrics) -> None:
        self._path = path
        self._metrics = metrics
        self._lines = Lines()
        self._offset = 0
        self._seen = (0, 0, 0)

    def read(self) -> None:
        """Takes the lines that are complete.

        Raises:
            TrialPruned: see `Metrics.printed`.
        """
        with contextlib.suppress(OSError):
            status = self._path.stat()
            seen = (status.st_ino, status.st_size, status.st_mtime_ns)
            if seen == self._seen:
                return
            if status.st_ino != self._seen[0] or status.st_size <= self._seen[1]:
                self._offset, self._lines = 0, Lines()
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(_PER_CALL)
            self._offset += len(data)
            # If only part of it was read, the next call must read the rest even without another
            # change.
            self._seen = (
                seen if self._offset >= status.st_size else (status.st_ino, self._offset, 0)
            )
            for line in self._lines.feed(data):
                self._metrics.recorded(line)

    def finish(self) -> None:
        """Takes what is left: a last line without a line end, or a file that is one JSON object."""
        before = -1
        while self._offset != before:  # one call reads only part of a large file
            before = self._offset
            self.read()
        self._metrics.recorded(self._lines.rest())
        if self._metrics.records == 0 and 0 < self._offset <= MAX_LINE:
            with contextlib.suppress(OSError):
                self._metrics.recorded(self._path.read_bytes())


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of `data`; drops it if the reader is gone."""
    with contextlib.suppress(BrokenPipeError):
        while data:
            data = data[os.write(descriptor, data) :]


class Pump:
    """Copies the pipe `source` to `sink`, and passes lines that contain `holding` to `take`."""

    def __init__(
        self, source: int, sink: int, take: Callable[[bytes], None], holding: bytes
    ) -> None:
        os.set_blocking(source, False)
        self.source = source
        self.open = True
        self._sink = sink
        self._take = take
        self._lines = Lines(holding)

    def drain(self) -> None:
        """Takes what is in the pipe, at most `_PER_CALL` bytes, so that it returns in any case.

        Raises:
            TrialPruned: see `Metrics.printed`.
        """
        taken = 0
        while self.open and taken < _PER_CALL:
            try:
                data = os.read(self.source, 1 << 16)
            except BlockingIOError:
                return
            self.open = bool(data)
            taken += len(data)
            write_all(self._sink, data)
            for line in self._lines.feed(data):
                self._take(line)

    def finish(self) -> None:
        """Takes what is left, including a last line without a line end."""
        self.drain()
        self._take(self._lines.rest())
