"""The command `best`: the trial that is believed to be the best, its values as overrides, and the
config to train with.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from orchestrator.cli import probes, provenance, screen, stage_words
from orchestrator.cli.beliefs import Beliefs
from orchestrator.cli.call import Call
from orchestrator.cli.named import study_of
from orchestrator.cli.warm_start import Weighed
from orchestrator.config import trial_words
from orchestrator.errors import ConfigError, OrchestratorError, StudyFailedError
from orchestrator.model import MOST_CELLS, Axis, StudySpec, value_label, visible
from orchestrator.store import is_ended_early

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from orchestrator.store import (
        ChainRow,
        CodeRow,
        ProbeRow,
        Progress,
        Reading,
        StudyRow,
        TrialRow,
    )

_STDOUT = "-"
_COUPLING = re.compile(r"\b(linear|sqrt)_scaling:")


@dataclass(frozen=True)
class _Found:
    """What the database has of a study and its best trials; `origins` are theirs, one each.

    Of a stage, its `chain`, and the best trial of each stage in words, by the id of its study.
    """

    spec: StudySpec
    progress: Progress
    believed: Beliefs
    origins: list[dict[str, Any]]
    code: list[CodeRow]
    probes: list[ProbeRow]
    chain: ChainRow | None
    bests: dict[int, str]
    weighed: Weighed

    @property
    def of_stage(self) -> tuple[dict[str, Any], list[Axis]]:
        """Of a stage, what `ChainRow.set_by` has."""
        if self.chain is None:
            return {}, []
        return self.chain.set_by(self.spec, self.progress.study.study_id)


def run(call: Call) -> int:
    """The best trial (or `trial=N`) as YAML and as overrides.

    The best is the one with the best mean, as the model believes; with `observed=true` the one with
    the best value. `out=FILE` also writes the params to train with; `out=-` prints only those.
    """
    wanted, observed = call.number("trial"), call.flag("observed")
    if observed and wanted is not None:
        raise ConfigError(f"observed=true: trial={wanted} already says which trial; give one")
    if call.words.get("out") == "":
        raise ConfigError("out=: needs a file name, such as out=best.yaml")
    if call.words.get("out") == _STDOUT and call.json:
        raise ConfigError(
            "out=- prints the params to train with and nothing else; leave out --json"
        )
    groups = call.groups
    found = _read(call, wanted, observed=observed)
    if "out" in call.words:
        _write_config(call.words["out"], found.spec, found.believed.best)
    if call.words.get("out") == _STDOUT:
        return 0
    if call.json:
        print(screen.as_json(_as_data(found, groups)))
    else:
        _print(found, groups, how="" if observed else "; observed=true shows it")
    return 0


def _read(call: Call, wanted: int | None, *, observed: bool) -> _Found:
    """Reads the study.

    Raises:
        ConfigError: it has no trial `wanted`.
        StudyFailedError: it has no complete trial.
    """
    with call.reading() as store:
        row = _newest_with_results(call, store)
        spec = store.reads.spec(row.study_id)
        most = None if call.json else MOST_CELLS
        progress = store.reads.progress(row, maximize=spec.directions[0] == "maximize", most=most)
        believed = Beliefs.of(store, spec, progress, observed=observed)
        if wanted is not None:
            believed = replace(believed, best=store.reads.trials(row.study_id, number=wanted))
        origins = provenance.of_trials(store, row, believed.best)
        code = store.reads.code(row.study_id)
        measured = store.measured.of(row.study_id) if spec.probes else []
        weighed = Weighed.of(store, row.study_id, spec)
        chain = store.chains.of(row.study_id)
        bests = {} if chain is None else stage_words.bests(store, chain)
    if chain is not None and believed.best and wanted is None:
        bests[row.study_id] = stage_words.best_words(believed.best[0], spec.metrics[0])
    if not believed.best and wanted is not None:
        raise ConfigError(
            f"trial={wanted}: study {row.name} has no trial with that number run by this program"
        )
    if not believed.best:
        raise StudyFailedError(f"study {row.name} has no complete trial yet")
    return _Found(spec, progress, believed, origins, code, measured, chain, bests, weighed)


def _newest_with_results(call: Call, store: Reading) -> StudyRow:
    """The study; of a chain, that of its newest stage with a complete trial."""
    chain = None if call.study_name is None else store.chains.find(call.study_name)
    done = [] if chain is None else [stage for stage in chain.begun if stage.complete]
    if not done or chain is None or done[-1] is chain.newest:
        return study_of(call, store)
    print(
        f"{chain.name} is a chain of stages, and its newest has no complete trial yet; this is "
        f"about {done[-1].study}",
        file=sys.stderr,
    )
    return store.reads.find(done[-1].study)


def _as_data(found: _Found, groups: Collection[str]) -> dict[str, Any]:
    spec, believed = found.spec, found.believed
    data = {
        **screen.as_data(spec, found.progress, believed.best, believed.cells),
        **believed.data(spec),
        "code": provenance.code_data(found.code),
        "chain": stage_words.data(found.chain),
        "warm_start": found.weighed.data(),
    }
    for entry, trial, origin in zip(data["best"], believed.best, found.origins, strict=True):
        entry |= {"overrides": trial_words(spec, trial.params, groups, *found.of_stage), **origin}
        if spec.probes:
            entry["outside_probes"] = _outside(found, trial)
    return data


def _print(found: _Found, groups: Collection[str], *, how: str) -> None:
    spec, believed = found.spec, found.believed
    for trial, origin in zip(believed.best, found.origins, strict=True):
        data = {"study": spec.name, **screen.trial_data(spec, trial)}
        print(_yaml(data), end="")
        print(provenance.comment(origin))
        print(_overrides_comment(trial_words(spec, trial.params, groups, *found.of_stage)))
        for remark in _outside(found, trial):
            print(f"# {value_label(remark)}")
    for line in believed.lines(spec, how=how):
        print(f"# {value_label(line)}")
    if is_ended_early(found.progress.study.state, found.progress.study.reason):
        print(f"# {value_label(f'the study ended early: {found.progress.study.reason}')}")
    if mixed := provenance.changes_within(found.code):
        print(f"# {value_label(mixed)}")
    for line in found.weighed.lines():
        print(f"# {value_label(line)}")
    if found.chain is not None:
        print(f"# {stage_words.headline(found.chain)}")
        for line in stage_words.table(found.chain, found.bests):
            print(f"# {line}")
    if spec.grid and any(believed.cells):
        print(screen.cell_comments(spec, found.progress.cells, believed.cells))


def _yaml(data: Any) -> str:
    """YAML in which every character is seen."""
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    if any(line != visible(line) for line in text.split("\n")):
        text = yaml.safe_dump(data, sort_keys=False)
    return text


def _outside(found: _Found, trial: TrialRow) -> list[str]:
    """Which of the trial's values lie outside what the probes of its cell found."""
    if not found.probes:
        return []
    axes = {axis.path for axis in found.spec.grid}
    cell = {path: value for path, value in trial.params.items() if path in axes}
    others = {path: value for path, value in trial.params.items() if path not in axes}
    return probes.outside(found.spec, found.probes, cell, others)


def _overrides_comment(overrides: list[str] | None) -> str:
    if overrides is None:
        return (
            "# one of these values cannot be written as an override; out=FILE writes the config "
            "to train with"
        )
    line = " ".join(overrides)
    if line != visible(line):  # a line break would end the comment
        return (
            "# as overrides: one of them contains a character that is not seen, or a line break; "
            "--json shows them"
        )
    return f"# as overrides\n# {line}"


def _write_config(path: str, spec: StudySpec, chosen: list[TrialRow]) -> None:
    if len(chosen) != 1:
        numbers = ", ".join(str(t.number) for t in chosen)
        raise ConfigError(
            f"out={path}: several trials are best (trials {numbers}); choose one with trial=N"
        )
    from omegaconf import OmegaConf  # slow to import, and needed only where a file is written

    text = OmegaConf.to_yaml(trained_with(spec, chosen[0]))
    if path == _STDOUT:
        print(text, end="")
        return
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        folder = Path(path).absolute().parent
        raise OrchestratorError(
            f"out={path}: {error.strerror} ({folder}); give a file that you can write, or out=- "
            "to print the params"
        ) from error
    print(f"wrote the params of trial {chosen[0].number} to {path}", file=sys.stderr)


def trained_with(spec: StudySpec, trial: TrialRow) -> DictConfig:
    """The params with the trial's values in place, for plain OmegaConf.

    This program's own resolvers are replaced by their values where that is possible. Other
    interpolations stay as they are, and nothing is read from this process's environment, so that
    no secret gets in.
    """
    from omegaconf import OmegaConf

    from orchestrator.overlay import overlay
    from orchestrator.runner.child import resolvers

    resolvers.register()
    config = OmegaConf.create(dict(spec.params))
    contents = spec.contents(trial.params)
    declared = {
        name: contents.get(name, value)
        for name, value in trial.params.items()
        if spec.declares(name)
    }
    overlay(config, {name: value for name, value in declared.items() if name not in spec.options})
    for name, value in trial.params.items():
        if name not in declared:
            _put_suggested(config, name, value)
    with _no_environment():
        raw: dict[str, Any] = _uncoupled(config, OmegaConf.to_container(config, resolve=False))
    return OmegaConf.create(raw)


def _put_suggested(config: DictConfig, name: str, value: Any) -> None:
    """Puts a value where the objective looks for `name`: at that path, else under that key."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if all(name.split(".")):
        with suppress(OmegaConfBaseException):  # such as a.b next to a plain value called a
            OmegaConf.update(config, name, value, merge=False, force_add=True)
            return
    config[name] = value


def _uncoupled(node: Any, raw: Any) -> Any:
    """`raw` with this program's resolvers replaced by their values, read from the config `node`."""
    from omegaconf.errors import OmegaConfBaseException

    for key, value in list(raw.items() if isinstance(raw, dict) else enumerate(raw)):
        if isinstance(value, (dict, list)):
            _uncoupled(node[key], value)
        elif isinstance(value, str) and _COUPLING.search(value):
            with suppress(OmegaConfBaseException):
                raw[key] = node[key]
    return raw


@contextmanager
def _no_environment() -> Iterator[None]:
    from omegaconf import OmegaConf
    from omegaconf.resolvers import oc

    def refuse(*_: Any) -> NoReturn:
        raise ValueError("the environment is not read here")

    OmegaConf.register_new_resolver("oc.env", refuse, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
