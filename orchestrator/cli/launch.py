"""`launch`: create or continue a study, run workers on this machine, follow the study to its end.

Read `run` from the top. The checks are in `preflight`; what follows them is in `launch_study`,
which a dry run does without.
"""

from __future__ import annotations

import json
from contextlib import ExitStack

from orchestrator import config, search
from orchestrator.cli import preflight, screen, warm_start
from orchestrator.cli.call import Call
from orchestrator.cli.commands import CONFIRM, INTERRUPTED
from orchestrator.cli.foreseen import foreseen
from orchestrator.cli.waiting import waiting
from orchestrator.errors import ConfigError
from orchestrator.lazy import uncollected
from orchestrator.model import StudySpec
from orchestrator.signals import Ending


def run(call: Call) -> int:
    """Returns 0 if the study has a complete trial at the end, 130 if the user interrupted."""
    with Ending(INTERRUPTED) as ending, ExitStack() as stack:
        with waiting("reading the configuration", only_on_terminal=True):
            chain = config.chain(call.composed)
            spec = config.study_spec(call.composed) if chain is None else None
        if chain is not None:
            with uncollected():
                from orchestrator.cli import launch_stages
            return launch_stages.run(call, chain, ending)
        assert spec is not None
        if CONFIRM in call.words:
            raise ConfigError(f"{CONFIRM}={call.words[CONFIRM]}: this study has no stages")
        if "--dry-run" not in call.switches:
            with uncollected():
                from orchestrator.cli.spent import concluded
            if concluded(call, spec):
                return 0
        with waiting("checking the study", only_on_terminal=True):
            importing = stack.enter_context(preflight.Importing(call, spec))
            distributions = checked(spec)
        if ending.requested:  # an import has swallowed the `SystemExit`
            return INTERRUPTED
        if "--dry-run" not in call.switches:
            with uncollected():
                from orchestrator.cli.launch_study import launch
            return launch(call, spec, importing, ending)
        importing.finish()
        _show_plan(call, spec, distributions)
    return 0


def _show_plan(call: Call, spec: StudySpec, distributions: list[tuple[str, str]]) -> None:
    """What the launch would do.

    Raises:
        ConfigError: it would be refused.
    """
    remarks = preflight.remarks(spec)
    taken = warm_start.NOTHING
    with ExitStack() as stack:
        if spec.warm_start:
            with waiting("reading the studies of warm_start"):
                taken = warm_start.taken(stack.enter_context(call.reading()), spec)
        seen = foreseen(
            call,
            f"study {spec.name}",
            [spec.name],
            lambda store, _: (
                f"study {spec.name}",
                store.studies.launch(
                    spec,
                    search.extension if config.extends(call.composed) else None,
                    priors=taken.new,
                    enqueued=taken.enqueued,
                ),
            ),
        )
    if call.json:
        data = screen.plan_data(spec, distributions)
        told = {"warm_start": taken.data(spec), "remarks": remarks, "stored": seen.data()}
        print(json.dumps({**data, **told}, indent=2))
    else:
        from orchestrator.cli.probes import plan_lines  # imports what a launch has no use for

        more = [*taken.lines(spec), *plan_lines(spec)]
        print(screen.plan(spec, distributions, [*remarks, *seen.lines()], more))


def checked(spec: StudySpec) -> list[tuple[str, str]]:
    """The study's parameters in words.

    A launch runs every check of a dry run, here, before it writes anything.

    Raises:
        ConfigError: a worker could not search the study's space.
    """
    search.Search(spec)
    return search.describe(spec)
