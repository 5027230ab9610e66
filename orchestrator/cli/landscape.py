"""The command `landscape`: the loss landscapes that trials stored, side by side in one page."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from orchestrator.cli import screen
from orchestrator.cli.call import Call
from orchestrator.cli.named import study_of
from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.model import count_label, value_label
from orchestrator.passwords import mask
from orchestrator.report import page
from orchestrator.report.page import write

if TYPE_CHECKING:
    from orchestrator.model import StudySpec
    from orchestrator.store import Reading, StudyRow, TrialRow
    from orchestrator.training import LossLandscape, Sharpness

_ARTIFACT: Final = "landscape.json"
_RADIUS: Final = 0.5
_TITLE: Final = 60  # of a picture's second line
_USAGE: Final = "orchestrator landscape study.name=mine trials=3,7 out=landscapes.html"


@dataclass(frozen=True)
class _Shown:
    """A trial and its landscape; `sharpness` if the landscape is complete enough to tell."""

    trial: TrialRow
    artifact_id: str
    landscape: LossLandscape
    sharpness: Sharpness | None


def run(call: Call) -> int:
    """Writes one HTML page, which needs no network, with the landscapes of the trials given.

    They have the same axes and colours. A trial's landscape is its last artifact of the name
    `artifact`, as `LossLandscape.save` wrote it.
    """
    numbers = _numbers(call)
    out, name = call.words.get("out"), call.words.get("artifact", _ARTIFACT)
    for word, value in (("out", out), ("artifact", name)):
        if not value:
            raise ConfigError(f"{word}= needs a file name: {_USAGE}")
    assert out is not None
    from orchestrator.training import compare_landscapes  # slow to import: it brings torch

    with call.reading() as store:
        row = study_of(call, store)
        spec = store.reads.spec(row.study_id)
        found = _artifacts(store, row, numbers, name)
        read = [(trial, key, _read(call, store, row, trial, key, name)) for trial, key in found]
    radius = min(_RADIUS, *(landscape.radius for _, _, landscape in read))
    shown = [
        _Shown(trial, key, landscape, _sharpness(landscape, radius))
        for trial, key, landscape in read
    ]
    try:
        figure = compare_landscapes({f"trial {one.trial.number}": one.landscape for one in shown})
    except ValueError as error:
        raise OrchestratorError(f"trials={call.words['trials']}: {error}") from error
    titles = _titles(shown)
    figure.for_each_annotation(lambda one: one.update(text=titles[one.text]))
    figure.for_each_trace(lambda one: one.update(name=titles.get(one.name)))
    write(out, _page(spec, shown, figure))

    if call.json:
        data = {"study": row.name, "out": out, "trials": [_data(spec, one) for one in shown]}
        print(screen.as_json(data))
        return 0
    for one in shown:
        print(f"trial {one.trial.number}: loss {one.landscape.centre:.4g}, {_rise(one)}")
    print(f"wrote {out}")
    return 0


def _numbers(call: Call) -> list[int]:
    text = call.words.get("trials")
    if text is None:
        raise ConfigError(f"landscape needs the numbers of trials: {_USAGE}")
    if not re.fullmatch(r"\d{1,18}(,\d{1,18})*", text):
        raise ConfigError(
            f"trials={text}: must be numbers of trials, separated by commas, such as trials=3,7"
        )
    numbers = [int(part) for part in text.split(",")]
    for number in numbers:
        if numbers.count(number) > 1:
            raise ConfigError(f"trials={text}: give each trial once, not {number} twice")
    return numbers


def _artifacts(
    store: Reading, row: StudyRow, numbers: list[int], name: str
) -> list[tuple[TrialRow, str]]:
    """Each trial, and the id of its last artifact of that name.

    Raises:
        ConfigError: a trial is unknown, or has none.
    """
    trials = []
    for number in numbers:
        one = store.reads.trials(row.study_id, number=number)
        if not one:
            raise ConfigError(f"trials: study {row.name} has no trial {number} run by this program")
        trials += one
    records = store.reads.artifacts(row.study_id, numbers)
    found = []
    for trial in trials:
        names = [record["filename"] for record in records[trial.number]]
        if name not in names:
            others = ", ".join(value_label(other) for other in dict.fromkeys(names))
            has = f"it has {others}" if others else "it has none"
            raise ConfigError(
                f"trial {trial.number} of {row.name} has no artifact {value_label(name)} ({has}); "
                f"the objective stores one with trial.log_artifact(file), another name is given "
                "with artifact=NAME"
            )
        last = [record for record in records[trial.number] if record["filename"] == name][-1]
        found.append((trial, last["artifact_id"]))
    return found


def _read(
    call: Call, store: Reading, row: StudyRow, trial: TrialRow, artifact_id: str, name: str
) -> LossLandscape:
    """The landscape in an artifact.

    Raises:
        OrchestratorError: it is not where this host keeps artifacts, or it is no landscape.
    """
    from orchestrator.runner.files.artifacts import ArtifactPlace
    from orchestrator.training import LossLandscape

    place = call.host.paths.artifacts or str(call.host.paths.data / "artifacts")
    what = f"trial {trial.number}: its artifact {value_label(name)} ({artifact_id})"
    where = mask(place)
    if "://" not in place:
        place = where = str(Path(place).expanduser().absolute())
    try:
        with ArtifactPlace(place).open_reader(artifact_id) as file:
            content = file.read()
    except FileNotFoundError:
        host = store.reads.attempts(row.study_id, trial.number)[-1].host
        raise OrchestratorError(
            f"{what} is not in {where}; the trial ran on {host}, which may keep artifacts "
            "elsewhere: run this command there, or set paths.artifacts"
        ) from None
    except OSError as error:
        raise OrchestratorError(f"{what} cannot be read: {error.strerror} ({where})") from error
    try:
        return LossLandscape.from_dict(json.loads(content))
    except ValueError as error:
        raise OrchestratorError(f"{what}: {error}") from error


def _sharpness(landscape: LossLandscape, radius: float) -> Sharpness | None:
    try:
        return landscape.sharpness(radius)
    except ValueError:  # only a part of it is evaluated yet
        return None


def _rise(one: _Shown) -> str:
    if one.sharpness is None:
        done, size = int(one.landscape.evaluated.sum()), one.landscape.evaluated.size
        return f"{done} of {count_label(size, 'point')} evaluated"
    mean, maximum, radius, _ = one.sharpness
    return (
        f"{radius:g} filter lengths away higher by {mean:.4g} on average and {maximum:.4g} at most"
    )


def _data(spec: StudySpec, one: _Shown) -> dict[str, Any]:
    landscape, sharp = one.landscape, one.sharpness
    return {
        **screen.trial_data(spec, one.trial),
        "artifact_id": one.artifact_id,
        "loss": landscape.centre,
        "sharpness": None
        if sharp is None
        else {"mean": sharp.mean, "maximum": sharp.maximum, "radius": sharp.radius},
        "dimensions": landscape.dimensions,
        "batch_norm": landscape.batch_norm,
        "seed": landscape.seed,
        "evaluated": int(landscape.evaluated.sum()),
        "points": landscape.evaluated.size,
    }


# ----------------------------------------------------------------------------------------- the page


_NOTE: Final = (
    "Losses along random directions in which each filter moves relative to its own length; 0 is "
    "the model. The rises are those {away:g} of that length away, between grid points by linear "
    "interpolation. Two directions out of very many: another seed gives other numbers."
)


def _page(spec: StudySpec, shown: list[_Shown], figure: Any) -> str:
    title = f"Loss landscapes of {spec.name}"
    radius = next((one.sharpness.radius for one in shown if one.sharpness), None)
    drawn = json.loads(figure.to_json())
    del drawn["layout"]["template"]  # the page has its own, for light and dark
    note = html.escape(_NOTE.format(away=radius)) if radius else ""
    rows = "\n".join(_rows(spec, shown))
    body = f"""<h1>{html.escape(title)}</h1>
<div class="table"><table>
{rows}
</table></div>
<figure>{page.plot("landscapes", drawn, title)}</figure>
<p class="dim">{note}</p>"""
    return page.document(title, body, pictures=True)


def _titles(shown: list[_Shown]) -> dict[str, str]:
    """For the picture, each trial's number with what tells it from the others, by the number."""
    params = [one.trial.params for one in shown]
    names = [name for name in dict.fromkeys(n for p in params for n in p) if _differs(name, params)]
    titles = {}
    for one in shown:
        number = f"trial {one.trial.number}"
        told = ", ".join(
            f"{name}={value_label(one.trial.params[name])}"
            for name in names
            if name in one.trial.params
        )
        told = f"{told[: _TITLE - 1]}…" if len(told) > _TITLE else told
        titles[number] = f"{number}<br>{html.escape(told)}" if told else number
    return titles


def _differs(name: str, params: Sequence[Mapping[str, Any]]) -> bool:
    return any(
        p.get(name) != params[0].get(name) or (name in p) != (name in params[0]) for p in params
    )


def _rows(spec: StudySpec, shown: list[_Shown]) -> list[str]:
    """A column for each trial; parameters that differ stand out."""
    trials = [one.trial for one in shown]
    rows = [_row("", [f"trial {trial.number}" for trial in trials], "th")]
    for i, metric in enumerate(spec.metrics):
        values = ["" if t.values is None else f"{t.values[i]:.6g}" for t in trials]
        rows.append(_row(metric, values, kind="first" if i == 0 else ""))
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    for i, name in enumerate(names):
        values = [value_label(t.params[name]) if name in t.params else "" for t in trials]
        differs = _differs(name, [trial.params for trial in trials])
        kinds = ["first"] * (i == 0) + ["differs"] * differs
        rows.append(_row(name, values, kind=" ".join(kinds)))
    facts: list[tuple[str, list[str]]] = [
        ("loss of the model", [f"{one.landscape.centre:.4g}" for one in shown]),
        ("mean rise", [f"{s.mean:.4g}" if (s := one.sharpness) else "" for one in shown]),
        ("largest rise", [f"{s.maximum:.4g}" if (s := one.sharpness) else "" for one in shown]),
        ("batch-norm statistics", [one.landscape.batch_norm for one in shown]),
        ("seed of the directions", [str(one.landscape.seed) for one in shown]),
        (
            "points evaluated",
            [f"{one.landscape.evaluated.sum()} of {one.landscape.evaluated.size}" for one in shown],
        ),
    ]
    return rows + [
        _row(name, values, kind="first" if i == 0 else "") for i, (name, values) in enumerate(facts)
    ]


def _row(name: str, values: list[str], cell: str = "td", *, kind: str = "") -> str:
    cells = "".join(f"<{cell}>{html.escape(value)}</{cell}>" for value in values)
    return f'<tr class="{kind}"><th>{html.escape(name)}</th>{cells}</tr>'
