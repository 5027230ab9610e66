"""A launch that may change the study it continues: as `study.extend` says, or the user."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from orchestrator import config, search
from orchestrator.cli.call import Call
from orchestrator.cli.warm_start import Taken
from orchestrator.errors import DifferentStudyError
from orchestrator.model import StudySpec

if TYPE_CHECKING:
    from orchestrator.store import Launched, Relaunching


def launch_or_extend(call: Call, store: Relaunching, spec: StudySpec, taken: Taken) -> Launched:
    """Launches the study. Where that would change it, it is changed with `study.extend`, and asked
    for on a terminal.

    What the user agreed to is what is done: if somebody else has extended the study meanwhile, the
    difference is another one, and is shown anew.

    Args:
        taken: what the launch takes from other studies.

    Raises:
        DifferentStudyError: it would be changed, and may not be.
        ConfigError: as `Studies.launch`.
    """
    launched = partial(store.studies.launch, spec, priors=taken.new, enqueued=taken.enqueued)
    if config.extends(call.composed):
        return launched(search.extension)
    try:
        return launched()
    except DifferentStudyError as error:
        different = error
    while different.extendable and not call.json and sys.stdin.isatty() and _confirmed(different):
        try:
            return launched(search.extension, revision=different.revision)
        except DifferentStudyError as error:
            different = error
    raise different


def _confirmed(different: DifferentStudyError) -> bool:
    """Whether the user wants the study to be changed so."""
    lines = [f"this launch changes the study (its revision {different.revision}):"]
    lines += [f"  {change}" for change in different.changes]
    print("\n".join(lines), file=sys.stderr)
    print("change it? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
