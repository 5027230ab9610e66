"""What Optuna's tables need when a study is extended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optuna.distributions import CategoricalDistribution, distribution_to_json

from orchestrator import revision
from orchestrator.errors import ConfigError
from orchestrator.model import StudySpec, TrialNews
from orchestrator.revision import Extension
from orchestrator.search.space import Parameter, parameters


def extension(old: StudySpec, new: StudySpec) -> Extension:
    """The extension of a study by a declaration in the form of `revision.continued`.

    Raises:
        ConfigError: the study cannot be changed so; names every difference that is in the way, and
            why.
    """
    found = revision.changes(old, new)
    refused = [f"{change.difference}: {change.refusal}" for change in found if change.refusal]
    _refuse(new, refused)
    before, after = parameters(old), parameters(new)
    same = before.keys() & after.keys()
    why = "with the new value Optuna's tables would show others by another text"
    _refuse(
        new, [f"{path}: {why}" for path in sorted(same) if _relabels(before[path], after[path])]
    )
    texts = {
        path: tuple(distribution_to_json(p[path].distribution) for p in (before, after))
        for path in same
    }
    added = []
    for path, value in revision.defaults(old, new).items():
        parameter = after[path]
        internal = parameter.internal(value)
        added.append(
            (parameter.param(internal), value if parameter.grid else parameter.true_value(internal))
        )
    return Extension(
        replace(new, revision=old.revision + 1),
        tuple(map(str, found)),
        {path: (was, now) for path, (was, now) in texts.items() if was != now},
        tuple(added),
    )


def as_it_was(trial: TrialNews, then: StudySpec, now: StudySpec) -> TrialNews:
    """A trial of a study (`now`) as an earlier revision of it (`then`) had it: with its
    distributions, and without the parameters that were declared since.
    """
    before, after = parameters(then), parameters(now)
    params = tuple(
        before[param.name].param(param.internal) if param.name in before else param
        for param in trial.params
        if param.name in before or param.name not in after
    )
    return replace(trial, params=params)


def _refuse(new: StudySpec, refused: Sequence[str]) -> None:
    if refused:
        raise ConfigError(
            f"study.name={new.name}: the study cannot be extended by a different "
            f"{'; a different '.join(refused)}. Launch it under another name (study.name=…)"
        )


def _relabels(before: Parameter, after: Parameter) -> bool:
    """Whether choices that stay would be called otherwise in Optuna's tables."""
    was, now = before.distribution, after.distribution
    return (
        isinstance(was, CategoricalDistribution)
        and isinstance(now, CategoricalDistribution)
        and now.choices[: len(was.choices)] != was.choices
    )
