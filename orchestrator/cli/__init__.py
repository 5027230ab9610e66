"""The commands: parses and runs a subcommand, and maps errors to exit codes."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import orchestrator
from orchestrator import config, logs
from orchestrator.cli.call import Call
from orchestrator.errors import ConfigError, OrchestratorError, did_you_mean

COMMANDS: dict[str, tuple[str, str]] = {
    "launch": (
        "launch.run",
        (
            "create or continue a study, run workers on this machine, follow it to its end "
            "(--dry-run: import the objective and show the plan only)"
        ),
    ),
    "worker": (
        "serve.worker",
        "run one worker: claims a device and runs trials of all active studies",
    ),
    "dashboard": ("serve.dashboard", "serve optuna-dashboard on the same storage"),
    "status": (
        "status.run",
        "show the newest studies (n=50, n=all), cells, running trials, workers, devices",
    ),
    "best": (
        "best.run",
        "print the best trial as YAML and as overrides (trial=N: another one;"
        " out=file.yaml: write the config to train with, out=-: print it)",
    ),
    "trials": (
        "trials.run",
        "list the best trials (n=20, n=all; state=failed, cell=key=value, sort=-ended, --csv)",
    ),
    "logs": (
        "trial_log.run",
        "print a trial's log: trial=N (attempt=K: of an earlier attempt; -f: follow it)",
    ),
    "pause": (
        "controls.pause",
        "start no more trials of a study (--now: give its running trials back)",
    ),
    "resume": ("controls.resume", "continue a paused study"),
    "stop": (
        "controls.stop",
        "end a study once its running trials have ended (--now: give them back)",
    ),
    "retry": (
        "controls.retry",
        "run a failed trial again: trial=N, or trial=failed for all of them",
    ),
    "delete": (
        "delete.run",
        "delete a study that does not run, with its run directories and artifacts (--yes)",
    ),
    "enqueue": ("controls.enqueue", "add a trial by hand, on top of the budget: key=value …"),
    "rerun": (
        "rerun.run",
        "run the best trial, or trial=N, again with its seed and compare its value",
    ),
    "replay": (
        "replay.run",
        "make the suggestion of trial=N again, from the results the sampler had then",
    ),
    "doctor": (
        "doctor.run",
        "check the invariants of all studies, or of one: no trial lost, none counted twice",
    ),
    "db": ("db.run", "start | stop | url | upgrade: the embedded server and the schema"),
}
"""Each command's function, imported when it is called, and its line in the usage text."""
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code.

    A user's mistake is one line on standard error, never a traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    logs.configure("orchestrator")
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()  # while an error can still be reported
        return code
    except OrchestratorError as error:
        print(f"orchestrator: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
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


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
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

    call = Call.parse(name, rest)
    if call.flags.version:
        print(f"orchestrator {orchestrator.__version__}")
        return 0
    if call.flags.shows:
        print(config.show(call.flags, call.composed, name), end="")
        return 0
    module, run = COMMANDS[name][0].split(".")
    code: int = getattr(importlib.import_module(f"orchestrator.cli.{module}"), run)(call)
    return code


def _usage() -> str:
    commands = "\n".join(f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items())
    return f"""usage: orchestrator COMMAND [--json] [HYDRA OVERRIDE ...]

{commands}

Every command takes Hydra overrides (storage.path=/data, study.name=digits …) and Hydra's flags
(--cfg job, --config-dir DIR, --help). In launch, data.batch_size=32,64 makes a grid axis, and
optim.lr='tag(log, interval(1e-4, 1e-1))' makes a searched parameter.

  orchestrator launch experiment=digits
  orchestrator best study.name=digits"""
