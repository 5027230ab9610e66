"""A request to end reaches the worker whatever it does in that moment."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from orchestrator.draining import Bell, Drain, Draining

pytestmark = pytest.mark.timeout(60)


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
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
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
    assert bell.wait(10)
    bell.silence()
    assert not bell.wait(0)
