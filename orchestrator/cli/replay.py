"""The command that makes a suggestion again from what was known when it was made."""

from __future__ import annotations

import json
from dataclasses import replace

from orchestrator import search
from orchestrator.cli.call import Call
from orchestrator.errors import ConfigError
from orchestrator.model import ASK_KEY, JSONValue, StudySpec, Suggestion, TrialNews
from orchestrator.store import Store, StudyRow

_DIFFERS = 1


def run(call: Call) -> int:
    """Asks the sampler of trial N once more; 0 if it suggests what the trial got, 1 if not."""
    number = call.number("trial")
    if number is None:
        raise ConfigError("replay needs the trial's number: orchestrator replay trial=N")
    with call.store() as store:
        row = store.reads.find(call.study_name)
        spec = store.reads.spec(row.study_id)
        told = asked(store, row, number)
        got = told.system_attrs[ASK_KEY]
        again = _ask_again(store, row, spec, told, got)
    # as they are written today: 0.3 was 0.30000000000000004 once
    declared = search.parameters(spec)
    stored = {
        p.name: declared[p.name].param(p.internal).internal
        for p in told.params
        if p.name in declared
    }
    later = [param.name for param in told.params if not spec.declares(param.name)]
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
            "asked": got,
        }
        print(json.dumps(data, indent=2))
    else:
        print(
            f"trial {number} of {row.name}: asked by {got['sampler']['name']} with news up to "
            f"{got['position']}"
        )
        for path, value in derived.items():
            print(
                f"  {path} = {value!r}"
                + ("" if stored.get(path) == value else f", but the trial has {stored.get(path)!r}")
            )
        if later:
            print(
                f"  not asked again, for the objective asked for it as it ran: {', '.join(later)}"
            )
        print("the same suggestion" if same else "another suggestion than the trial has")
    return 0 if same else _DIFFERS


def asked(store: Store, row: StudyRow, number: int) -> TrialNews:
    """Trial `number` with what was written down when it was asked for.

    Raises:
        ConfigError: the study has no such trial of ours, or it is older than that.
    """
    found = store.news.of(row.study_id, number)
    if found is None:
        raise ConfigError(
            f"trial={number}: the study has no trial of that number that this program ran"
        )
    if "position" not in found.system_attrs.get(ASK_KEY, {}):
        raise ConfigError(
            f"trial={number}: it was made by an older version, which did not write down what it "
            "knew"
        )
    return found


def _ask_again(
    store: Store, row: StudyRow, spec: StudySpec, asked: TrialNews, got: dict[str, JSONValue]
) -> Suggestion:
    again = search.Search(replace(spec, seed=got["study_seed"], sampler=got["sampler"]))
    again.feed(store.news.at(row.study_id, got["position"]))
    again.feed(
        news for news in store.news.foreign(row.study_id, ()) if news.number in got["foreign"]
    )
    cells = list(spec.cells())
    assert asked.cell is not None
    return again.ask(
        cells[asked.cell], ticket=got["ticket"], retry=got["retry"], given=got["given"]
    )
