"""What the model believes of a study: which trial is the best, and how good each cell can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from orchestrator import search
from orchestrator.cli import screen
from orchestrator.model import MOST_BELIEVED, MOST_CELLS, StudySpec

if TYPE_CHECKING:
    from orchestrator.search import CellEstimate, Leader, Leaders
    from orchestrator.store import Progress, Reading, TrialRow

_FEWEST_TRIALS = 3  # with fewer, the model says nothing
_MOST_TIED = 5


@dataclass(frozen=True)
class Beliefs:
    """The best trial, or the Pareto front, and what the model believes.

    `best` is the trial that is believed to be the best, `observed` the one with the best value:
    they are the same where nothing is believed. `leaders` is None where the model has nothing to
    say, and so is the estimate of a cell; with `too_many` trials it is not asked.
    """

    best: list[TrialRow]
    observed: list[TrialRow]
    leaders: Leaders | None = None
    cells: Sequence[CellEstimate | None] = field(default_factory=list)
    too_many: bool = False

    @staticmethod
    def of(
        store: Reading,
        spec: StudySpec,
        progress: Progress,
        *,
        observed: bool = False,
        estimates: bool = True,
    ) -> Beliefs:
        """Reads the study's trials; repeated calls give the same.

        Args:
            observed: the best trial is the one with the best value, whatever is believed.
            estimates: estimate the cells, too.
        """
        study_id = progress.study.study_id
        seen = screen.best_trials(spec, store.reads.contenders(study_id, spec.directions))
        nothing: list[CellEstimate | None] = [None] * len(progress.cells)
        if not seen or not _FEWEST_TRIALS <= progress.spent <= MOST_BELIEVED:
            return Beliefs(seen, seen, None, nothing, progress.spent > MOST_BELIEVED)
        # This imports Optuna, which is slow: only the commands that need it do so.
        model = search.Search(spec)
        model.feed(store.news.since(study_id, 0)[0])
        leaders = model.leaders()
        cells = nothing
        if estimates and progress.n_cells <= MOST_CELLS:
            cells = model.summary([cell.values for cell in progress.cells])
        if observed:
            # The table of cells then shows what was observed as well.
            cells = [e and replace(e, trial=None, value=None) for e in cells]
            return Beliefs(seen, seen, leaders, cells)
        best = store.reads.trials(study_id, number=leaders.best.trials[0]) if leaders else []
        return Beliefs(best or seen, seen, leaders, cells)

    def data(self, spec: StudySpec) -> dict[str, Any]:
        """For JSON."""
        if self.leaders is None:
            return {"noise": None, "leaders": [], "best_observed": self._observed(spec)}
        return {
            "noise": None if self.leaders.noise is None else asdict(self.leaders.noise),
            "leaders": [
                {**asdict(leader), "tied": leader.tied}
                for leader in self.leaders.configurations
                if leader.tied or leader is self.leaders.best
            ],
            "best_observed": self._observed(spec),
        }

    def _observed(self, spec: StudySpec) -> list[dict[str, Any]]:
        return [screen.trial_data(spec, trial) for trial in self.observed]

    def lines(self, spec: StudySpec, *, how: str = "") -> list[str]:
        """For people: what is expected of the best trial, what is tied with it, and which one has
        the best value if that is another.

        Args:
            how: what shows the best observed trial instead.
        """
        if self.too_many:
            return [f"with more than {MOST_BELIEVED:,} trials, the best is the best observed"]
        if self.leaders is None or len(self.best) != 1:
            return []
        metric, chosen = spec.metrics[0], self.best[0].number
        noise, best = self.leaders.noise, self.leaders.best
        mine = next((c for c in self.leaders.configurations if chosen in c.trials), None)
        lines = []
        if mine is not None:
            interval = f" (90 %: {mine.low:.4g} to {mine.high:.4g})" if noise else ""
            runs = f"; {len(mine.trials)} trials have these parameters"
            lines.append(
                f"expected {metric}: {mine.mean:.4g}{interval}"
                f"{runs if len(mine.trials) > 1 else ''}"
            )
        lines.append(
            f"noise of {metric} from seed to seed: none found"
            if noise is None
            else f"noise of {metric} from seed to seed: {noise.std:.2g} (90 %: {noise.low:.2g} to "
            f"{noise.high:.2g})"
        )
        if mine is best and noise is not None and self.leaders.tied:
            lines.append(
                f"tied with it, for the noise hides a difference: {_named(self.leaders.tied)}"
            )
        (seen,) = self.observed
        value = f"{metric}={(seen.values or (0.0,))[0]:.6g}"
        if seen.number not in (mine.trials if mine is not None else (chosen,)):
            lines.append(f"best observed: trial {seen.number}, {value}{how}")
        return lines


def _named(tied: Sequence[Leader]) -> str:
    numbers = ", ".join(str(leader.trials[0]) for leader in tied[:_MOST_TIED])
    more = len(tied) - _MOST_TIED
    return (
        f"trial{'' if len(tied) == 1 else 's'} {numbers}{f' and {more} more' if more > 0 else ''}"
    )
