"""The objective's import, in a keeper or in a process that does nothing else."""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from types import FrameType

from orchestrator import signals
from orchestrator.errors import ConfigError
from orchestrator.runner.keeper import forking
from orchestrator.runner.protocol.channel import Channel, wait_readable
from orchestrator.runner.protocol.contract import KeeperOptions
from orchestrator.runner.protocol.executable import check_program
from orchestrator.runner.protocol.target import check_call, describe_import_error, locate
from orchestrator.runner.system import linux
from orchestrator.runner.system.streams import flush_streams, open_streams


def ignore(_signal: int, _frame: FrameType | None) -> None:
    """Does nothing about a signal: the worker decides what follows."""


def connect(options: KeeperOptions) -> Channel:
    """The channel to the process that started this one; prepares for user code."""
    signals.handle(ignore)
    signals.let_in()
    # SIGKILL for now: during the import, user code runs here and there is nothing to clean up yet.
    linux.die_with_parent(signal.SIGKILL, options.worker_pid)
    for descriptor in (options.control, *options.held):
        os.set_inheritable(descriptor, False)
    channel = Channel(socket.socket(fileno=options.control))
    open_streams()
    del sys.argv[1:]  # a module that parses arguments at import must not see ours
    return channel


def import_objective(options: KeeperOptions, channel: Channel) -> str | None:
    """Imports the objective into this process, and reports what is wrong with it or unusual.

    Returns:
        How children are made from now on, ``forkserver`` or ``spawn``; None if something is wrong.
    """
    if not _imports(options, channel):
        return None
    reason = forking.reason_to_spawn() if options.start == "forkserver" else None
    if reason is None:
        return options.start
    channel.send({"is": "note", "message": f"every trial starts a new interpreter: {reason}"})
    return "spawn"


def check(options: KeeperOptions) -> None:
    """Imports the objective and what else is asked for, says whether that works, and waits to be
    told to end.
    """
    channel = connect(options)
    if (start := import_objective(options, channel)) is None:
        return
    for target, kwargs in options.also:
        if not _imports(replace(options, target=target, kwargs=kwargs, words=()), channel):
            return
    channel.send({"is": "ready", "start": start})
    while not channel.closed and os.getppid() == options.worker_pid:
        wait_readable([channel], 1.0)
        channel.receive()
    flush_streams()
    os._exit(0)  # threads that the objective has started are not waited for


def _imports(options: KeeperOptions, channel: Channel) -> bool:
    """Whether a function can be imported and called; reports that."""
    problem = _problem(options)
    channel.send({"is": "imported"} if problem is None else {"is": "broken", "message": problem})
    return problem is None


def _problem(options: KeeperOptions) -> str | None:
    """What is wrong with the objective, or None."""
    cwd = str(Path.cwd())
    if sys.path[:1] != [cwd]:
        sys.path.insert(0, cwd)
    try:
        check_program(next(iter(options.words), None))
        check_call(options.target, locate(options.target), options.kwargs)
    except ConfigError as error:
        return str(error)
    except BaseException as error:  # noqa: BLE001 - a module may raise anything when it is imported
        traceback.print_exc()
        return describe_import_error(options.target, error)
    return None
