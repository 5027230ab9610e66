"""The command `replay`: makes a suggestion again, from the results that the sampler had then and
under the revision of the study that there was.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator import search
from orchestrator.cli.call import Call
from orchestrator.cli.named import study_of
from orchestrator.errors import ConfigError
from orchestrator.model import ASK_KEY, JSONValue, StudySpec, Suggestion, TrialNews, value_label
from orchestrator.settings import stored_sampler

if TYPE_CHECKING:
    from orchestrator.store import Store, StudyRow

_DIFFERS = 1


def run(call: Call) -> int:
    """Asks the sampler of trial N again.

    Returns 0 if it suggests the values that the trial got, 1 if not.
    """
    number = call.number("trial")
    if number is None:
        raise ConfigError("replay needs the trial's number: orchestrator replay trial=N")
    with call.store() as store:
        row = study_of(call, store)
        now = store.reads.spec(row.study_id)
        spec = store.reads.spec_of(row.study_id, number)
        trial = search.as_it_was(with_suggestion(store, row, number), spec, now)
        inputs = trial.system_attrs[ASK_KEY]
        again = _suggest_again(store, row, spec, now, trial, inputs)

    # Older versions stored 0.3 as 0.30000000000000004: convert to what this version would store.
    declared = search.parameters(spec)
    stored = {
        param.name: declared[param.name].param(param.internal).internal
        for param in trial.params
        if param.name in declared
    }
    later = [param.name for param in trial.params if not spec.declares(param.name)]
    derived = {param.name: param.internal for param in again.params}
    same = stored == derived
    if call.json:
        data = {
            "study": row.name,
            "trial": number,
            "same": same,
            "stored": stored,
            "derived": derived,
            "later": later,
            "revision": spec.revision,
            "asked": inputs,
        }
        print(json.dumps(data, indent=2))
    else:
        sampler, position = inputs["sampler"]["name"], inputs["position"]
        searched = {path for path, parameter in declared.items() if not parameter.grid}
        under = f", revision {spec.revision}" if now.revision > 1 else ""
        how = f"suggested by {sampler} from news up to {position}"
        if sources := inputs.get("warm_start"):
            how += f" and from {', '.join(map(value_label, sources))}"
        if searched and searched & derived.keys() <= inputs["given"].keys():
            how = "its parameters were given, and are not suggested"
        print(f"trial {number} of {row.name}{under}: {how}{_searched_where(inputs)}")
        for path, internal in derived.items():
            parameter, has = declared[path], stored.get(path)
            there = "none" if has is None else value_label(parameter.true_value(has))
            differs = "" if has == internal else f", but the trial has {there}"
            print(f"  {path} = {value_label(parameter.true_value(internal))}{differs}")
        if later:
            print(f"  not replayed, suggested while the objective ran: {', '.join(later)}")
        print("the same suggestion" if same else "differs from the trial's suggestion")
    return 0 if same else _DIFFERS


def _searched_where(inputs: dict[str, Any]) -> str:
    """Where parameters with bounds were searched."""
    said = ""
    for path, bounds in inputs.get("bounds", {}).items():
        limits = inputs.get("limits", inputs["bounds"]).get(path)
        found = _range(bounds)
        if limits is None:
            said += f"; {path} in its declared range, in doubt of {found}, as a probe found"
        elif limits == bounds:
            said += f"; {path} within {found}, as a probe found"
        else:
            said += f"; {path} within {_range(limits)}, around {found}, as a probe found"
    return said


def _range(limits: Sequence[float]) -> str:
    low, high = limits
    return f"{low:.3g} to {high:.3g}"


def with_suggestion(store: Store, row: StudyRow, number: int) -> TrialNews:
    """Trial `number` with the recorded inputs of its suggestion.

    Raises:
        ConfigError: the study has no such trial run by this program, or the inputs are not
            recorded.
    """
    found = store.news.of(row.study_id, number)
    if found is None:
        raise ConfigError(
            f"trial={number}: study {row.name} has no trial with that number run by this program"
        )
    if "position" not in found.system_attrs.get(ASK_KEY, {}):
        raise ConfigError(
            f"trial={number}: it was created by an older version, which did not record what its "
            "suggestion was based on"
        )
    return found


def _suggest_again(
    store: Store,
    row: StudyRow,
    spec: StudySpec,
    now: StudySpec,
    trial: TrialNews,
    inputs: dict[str, JSONValue],
) -> Suggestion:
    """Asks as the study's revision `spec` did, of which `now` is the newest one."""
    sampler = stored_sampler(inputs["sampler"])
    again = search.Search(replace(spec, seed=inputs["study_seed"], sampler=sampler))
    if sources := inputs.get("warm_start"):
        again.warm_start(store.news.priors(row.study_id, sources))
    foreign = store.news.foreign(row.study_id, ())
    known = store.news.at(row.study_id, inputs["position"])
    known += [news for news in foreign if news.number in inputs["foreign"]]
    again.feed(search.as_it_was(news, spec, now) for news in known)
    declared, had = search.parameters(spec), {p.name: p.internal for p in trial.params}
    cell = {axis.path: declared[axis.path].true_value(had[axis.path]) for axis in spec.grid}
    bounds = {path: (low, high) for path, (low, high) in inputs.get("bounds", {}).items()}
    return again.ask(
        cell,
        ticket=inputs["ticket"],
        retry=inputs["retry"],
        given=inputs["given"],
        bounds=bounds,
    )
