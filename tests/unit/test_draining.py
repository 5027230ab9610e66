"""A request to end reaches the worker whatever it does in that moment."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from orchestrator.signals import ENDING, Ending
from orchestrator.worker.shutdown import Bell, Drain, Draining

pytestmark = pytest.mark.timeout(180)


def test_a_signal_in_any_moment_of_the_wait_is_heard_and_nothing_hangs() -> None:
    draining, heard = Draining(), 0
    before = signal.signal(signal.SIGUSR1, lambda *_: draining.ask(Drain.FINISH))
    over = threading.Event()

    def knock() -> None:
        while not over.wait(0.0005):
            os.kill(os.getpid(), signal.SIGUSR1)

    knocking = threading.Thread(target=knock)
    knocking.start()
    try:
        began = time.monotonic()
        while (took_s := time.monotonic() - began) < 1 or (heard <= 10 and took_s < 60):
            heard += draining.woken.wait(0.0)
            draining.woken.silence()
    finally:
        over.set()
        knocking.join()
        signal.signal(signal.SIGUSR1, before)
    assert heard > 10
    assert draining.how == Drain.FINISH


def test_a_bell_rung_before_the_wait_ends_it_at_once_however_often() -> None:
    bell = Bell()
    for _ in range(100_000):  # more than a socket holds
        bell.ring()
    assert bell.wait(60)
    bell.silence()
    assert not bell.wait(0)


@pytest.fixture
def untouched() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("sent", "how"),
    [
        ([signal.SIGINT], Drain.FINISH),
        *(
            ([number], Drain.STOP)
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
        ),
        ([signal.SIGINT, signal.SIGTERM], Drain.STOP),
        ([signal.SIGINT, signal.SIGINT], Drain.FINISH),
        ([signal.SIGTERM, signal.SIGHUP], Drain.STOP),
        ([signal.SIGUSR1, None, signal.SIGTERM], Drain.NOW),
        ([signal.SIGINT, None, signal.SIGINT], Drain.NOW),
    ],
)
def test_signals_ask_to_end_and_those_sent_together_once(
    sent: list[signal.Signals | None], how: Drain, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("orchestrator.worker.shutdown.time.monotonic", lambda: now)
    draining = Draining()
    with draining.signals():
        for number in sent:
            if number is None:
                now += 2.0
            else:
                os.kill(os.getpid(), number)
    assert draining.how == how


@pytest.mark.usefixtures("untouched")
def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    draining = Draining()
    with draining.signals(), Ending(0):
        os.kill(os.getpid(), signal.SIGHUP)
    assert draining.how == Drain.NO
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.usefixtures("untouched")
def test_the_first_of_several_signals_ends_a_program_in_order_undisturbed_by_the_others() -> None:
    steps = []

    def program() -> None:
        with Ending(7):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGHUP)
                steps.append("cleaned up")

    with pytest.raises(SystemExit) as ended:
        program()
    assert (ended.value.code, steps) == (7, ["cleaned up"])
