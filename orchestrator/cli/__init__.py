"""The commands: parses and runs a subcommand, and maps errors to exit codes."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import orchestrator
from orchestrator.cli.commands import COMMANDS, INTERRUPTED, overview
from orchestrator.errors import ConfigError, OrchestratorError, did_you_mean
from orchestrator.lazy import uncollected

if TYPE_CHECKING:
    from orchestrator.cli.call import Call

__all__ = ["COMMANDS", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code.

    A user's mistake is one line on standard error, never a traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()  # while an error can still be reported
        return code
    except OrchestratorError as error:
        print(f"orchestrator: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has closed it, as head does
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        print(f"orchestrator: error: cannot write the output: {error.strerror}", file=sys.stderr)
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OrchestratorError.exit_code


def _open_streams() -> None:
    """Gives a process that was started without some of its standard streams, as by ``>&-``, ones
    that lead nowhere: else the first file or connection that it opens would take their place.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - as long as the process


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name in ("--version", "-V"):
        print(f"orchestrator {orchestrator.__version__}")
        return 0
    if name not in COMMANDS:
        guess = did_you_mean(name, COMMANDS)
        raise ConfigError(
            f"unknown command {name!r}{guess}; the commands are {', '.join(COMMANDS)}"
        )

    # What follows is slow to import, and not needed above.
    with _imports():
        from orchestrator import logs
        from orchestrator.cli.call import Call

        logs.configure("orchestrator")
        call = Call.parse(name, rest)
    if call.flags.version:
        print(f"orchestrator {orchestrator.__version__}")
        return 0
    if call.flags.shows:
        print(_shown(call), end="")
        return 0
    module, run = COMMANDS[name].run.split(".")
    with _imports():
        command = importlib.import_module(f"orchestrator.cli.{module}")
    code: int = getattr(command, run)(call)
    return code


@contextmanager
def _imports() -> Iterator[None]:
    """For slow imports: says on a terminal that they take long, on a busy machine."""
    from orchestrator.cli.waiting import waiting

    with waiting("starting", only_on_terminal=True), uncollected():
        yield


def _shown(call: Call) -> str:
    """The text that flags such as ``--cfg`` and ``--help`` ask for."""
    from orchestrator.cli import manual

    if not call.flags.help:
        from orchestrator import config

        return config.show(call.flags, call.composed)
    return manual.of_launch(call) if call.command == "launch" else manual.of_command(call)
