"""The interface of this room: a study in memory that learns news, suggests parameters and judges
running trials.
"""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from orchestrator import __version__
from orchestrator.errors import ConfigError
from orchestrator.lazy import uncollected
from orchestrator.model import (
    ASK_KEY,
    JSONValue,
    Limits,
    StudySpec,
    Suggestion,
    TrialNews,
    cell_label,
)
from orchestrator.prior import Prior
from orchestrator.search.answers import Answers
from orchestrator.search.cells.allocation import FLOOR, OpenCells, Question, choose
from orchestrator.search.cells.best import BestOfCells
from orchestrator.search.cells.configurations import Configurations
from orchestrator.search.cells.enough import Enough, Reasons
from orchestrator.search.cells.leaders import Leaders, confirm, leaders
from orchestrator.search.cells.model import CellModel
from orchestrator.search.cells.summary import Beliefs, CellEstimate, summarise
from orchestrator.search.discovered import Discovered
from orchestrator.search.gp.sampler import HybridGPSampler
from orchestrator.search.gp.sources import FEW, Sources
from orchestrator.search.gp.surrogate import Fits
from orchestrator.search.priors import source_trials
from orchestrator.search.pruners import Judge
from orchestrator.search.samplers import GeneticSampler, make_sampler
from orchestrator.search.science.results import Science
from orchestrator.search.science.sliced import Slices
from orchestrator.search.science.slices import slices
from orchestrator.search.science.study import analyse
from orchestrator.search.soft_bounds import FREE_EVERY, limits_in_effect
from orchestrator.search.space import Parameter, check_exist, in_steps, parameters
from orchestrator.search.tpe.sampler import HybridTPESampler
from orchestrator.search.trials.history import BOUNDS_KEY, FIXED_KEY
from orchestrator.search.trials.mirror import Mirror, blank_trial, frozen
from orchestrator.search.trials.quasirandom import POSITION_KEY, strided
from orchestrator.search.trials.threads import load_libraries, one_thread

MOST_LIKELY = 256
"""Of more cells, these many with the best trials are considered where the best one is asked for."""
_COMPLETE = TrialState.COMPLETE
_OWN_KEYS = (FIXED_KEY, BOUNDS_KEY, POSITION_KEY)


class Search:
    """Suggestions and pruning verdicts of one study, for one worker, based only on the news it was
    fed.

    Not thread-safe.
    """

    def __init__(self, spec: StudySpec, *, counts_from: int = 0) -> None:
        """Reads the study's space, sampler and pruner.

        Args:
            counts_from: the number of the first trial that ``stop_when.patience`` counts.

        Raises:
            ConfigError: the space or the settings of sampler or pruner are invalid.
        """
        self._spec = spec
        self._counts_from = counts_from
        self._parameters = parameters(spec)
        self._space = {path: parameter.distribution for path, parameter in self._parameters.items()}
        self._sampler: Any = make_sampler(spec.sampler)
        self._discovered = Discovered(self._parameters)
        self._sampler_of_discovered: Any = make_sampler(spec.sampler)
        self._modelled: tuple[dict[str, BaseDistribution], CellModel] | None = None
        self._judge = Judge(spec.pruner_in_effect)
        self._mirror = Mirror(spec.name, spec.directions)
        self._places = {
            axis.path: {
                self._parameters[axis.path].internal(value): place
                for place, value in enumerate(axis.values)
            }
            for axis in spec.grid
        }
        self._elsewhere: dict[tuple[float, ...], int] = {}
        self._cells: dict[int, int | None] = {}
        self._best = BestOfCells(spec.directions)
        self._finished = 0
        self._running: set[int] = set()
        self._tried_before: tuple[Configurations | None] | None = None
        self._analysed: tuple[str, Science | None] | None = None
        self._enough_before: tuple[tuple[int, tuple[int, ...]], Reasons] | None = None

    def feed(self, news: Iterable[TrialNews]) -> None:
        """Learns trials; idempotent, in any order, with gaps. A trial that has ended is never
        replaced by a running one.
        """
        self._tried_before = self._analysed = None
        for item in news:
            before = self._mirror.find(item.number)
            trial = frozen(item)
            if before is not None and before.state.is_finished():
                if not trial.state.is_finished():
                    continue
                self._finished -= 1
            self._mirror.put(trial)
            self._discovered.learn(trial)
            self._cells[item.number] = self._cell_of(item)
            self._best.note(item, self._cells[item.number])
            self._finished += trial.state.is_finished()
            (self._running.add if item.state == "RUNNING" else self._running.discard)(item.number)

    def warm_start(self, priors: Sequence[Prior]) -> None:
        """Lets sampler and allocation learn from other studies, before the first suggestion.

        What no longer lies in the study's space is not used. Samplers that do not learn, and
        parameters that the objective requests while it runs, are not affected.
        """
        maximize = self._spec.directions[0] == "maximize"
        trials = [source_trials(self._parameters, prior, maximize) for prior in priors]
        self._fits.sources = Sources(trials) if trials else None

    def discounts(self) -> list[float | None]:
        """How much each source of `warm_start` counts at the moment, from 0, not at all, to about
        1; None while too few trials have ended. A function of the finished trials.
        """
        sources = self._fits.sources
        if sources is None:
            return []
        model = self._model()
        history = model.finished(self._mirror)
        if not history.is_enough(FEW):
            return [None] * len(sources.trials)
        with one_thread():
            trend = model.surrogate(history).trend
        found = {} if trend is None else trend.by_source
        return [found.get(trials.name, 0.0) for trials in sources.trials]

    def load(self) -> None:
        """Loads the libraries for fitting a model, if this study fits one; a thread may run it
        beside `feed`, but no other method.
        """
        load_libraries()
        # Not while `one_thread` inspects the libraries: inspection and loading can deadlock.
        if (
            self._spec.allocation == "adaptive"
            or self._spec.budget.confirm > 0
            or self._spec.stop_when.on
            or isinstance(self._sampler, HybridGPSampler | HybridTPESampler)
        ):
            with uncollected():
                importlib.import_module("scipy.optimize")

    def rehearse(self) -> None:
        """Makes a suggestion and discards it, so that the next one finds its libraries loaded;
        changes no result.
        """
        self.ask({axis.path: axis.values[0] for axis in self._spec.grid}, ticket=0, retry=0)

    def ask(
        self,
        cell: Mapping[str, JSONValue],
        *,
        ticket: int,
        retry: int,
        bounds: Mapping[str, tuple[float, float]] | None = None,
        given: Mapping[str, JSONValue] | None = None,
    ) -> Suggestion:
        """Every parameter of a new trial in `cell`; a function of the news, the study's seed,
        `ticket` and `retry` alone.

        Parameters that do not exist in that cell are neither suggested nor passed to the sampler.

        Args:
            cell: a value for each axis of the grid.
            ticket: ordinal of the ticket in the study, from 0.
            retry: how often this ticket has failed before.
            bounds: where searched numbers are expected to be best in this cell (lowest and highest
                value, in the parameter's units; what lies outside the declared range is cut off).
                They are soft: every fourth ticket of a cell is searched in the declared range, and
                from four complete trials of the cell on the bounds stretch until they hold all
                values within their width (on the parameter's scale) of the best one. With several
                objectives they do not stretch. What is learnt is learnt in the declared range,
                whatever the bounds.
            given: values of searched parameters that are fixed; the others are suggested
                conditionally on them.

        Raises:
            ConfigError: the cell is not one of the grid; a given value is not in its parameter's
                space; bounds of a parameter that has none, or that leave nothing; a value or bounds
                of a parameter that does not exist in the cell.
        """
        given = given or {}
        alike = {path: p.fixed for path, p in self._parameters.items() if not p.grid}
        fixed = self._internal_cell(cell) | {
            path: internal for path, internal in alike.items() if internal is not None
        }
        fixed |= self._internal_given(given)
        asked = self._checked_bounds(bounds or {})
        check_exist([self._parameters[path] for path in [*given, *asked]], cell)
        limits = self._softened(asked, cell, ticket)
        present = {
            path: parameter
            for path, parameter in self._parameters.items()
            if parameter.exists_in(cell)
        }
        fixed = {path: internal for path, internal in fixed.items() if path in present}
        entropy = [abs(self._spec.seed), int(self._spec.seed < 0), ticket, retry]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        sequence_seed = int(np.random.SeedSequence([*entropy[:2], retry, 1]).generate_state(1)[0])
        self._sampler.reseed(seed)
        searched = [p for p in present.values() if p.path not in fixed]
        attrs = {
            FIXED_KEY: {
                path: self._space[path].to_external_repr(internal)
                for path, internal in fixed.items()
            },
            BOUNDS_KEY: self._within_now(limits),
            POSITION_KEY: (strided(ticket, self._spec.n_cells, len(searched)), sequence_seed),
        }
        drawn, written = self._sample(
            attrs, searched, {path: self._space[path] for path in present}
        )
        written[ASK_KEY] = {
            "seed": seed,
            "news": self._finished,
            "pending": len(self._running),
            "sampler": self._spec.sampler.name,
            "version": __version__,
        }
        if asked:
            written[ASK_KEY] |= {"bounds": asked, "limits": limits}
        spaces = {path: self._space[path] for path in drawn}
        internal = fixed | {
            path: in_steps(d, float(d.to_internal_repr(drawn[path]))) for path, d in spaces.items()
        }
        params = tuple(parameter.param(internal[path]) for path, parameter in present.items())
        decided = {**cell, **given}
        values = {
            path: decided[path] if path in decided else p.true_value(internal[path])
            for path, p in present.items()
        }
        return Suggestion(params, values, written)

    def answers(self, trial: TrialNews, *, ticket: int, retry: int) -> Answers:
        """Answers what the objective of a running trial asks for; by what was fed, the study's
        seed, `ticket` and `retry`.

        Args:
            trial: what is stored of it.
            ticket: ordinal of its ticket in the study, from 0.
            retry: how often this ticket had failed before.
        """
        sampler = self._sampler_of_discovered
        return Answers(
            self._spec,
            self._parameters,
            self._discovered,
            self._mirror,
            sampler,
            trial,
            ticket=ticket,
            retry=retry,
        )

    def likely_cells(self, most: int) -> list[int]:
        """Ordinals of the cells with the best trials, the best first: the candidates in a grid too
        large to consider whole.

        None with several objectives, which have no one best cell.
        """
        return self._best.first(most)

    def choose_cell(
        self, open_cells: OpenCells, *, ticket: int, retry: int
    ) -> tuple[int, dict[str, JSONValue]]:
        """The cell for the next trial, where it is expected to pay; a function of the news, the
        seed, the budget, `ticket` and `retry`.

        Running trials count as if they ended as predicted. It is the cell that has had the fewest
        trials until ten trials of the study have ended with a value and every cell has had a third
        of an equal share, and always with several objectives.

        Args:
            open_cells: ordinal and values of every cell that may get a trial; at least one.
            ticket: ordinal of the ticket in the study, from 0.
            retry: how often this ticket has failed before.

        Returns:
            The ordinal, and the reason as JSON: ``rule``, ``why`` in words, and the figures behind
                it in the objective's units.

        Raises:
            ConfigError: a cell is not one of the grid.
        """
        for _, values in open_cells:
            self._internal_cell(values)
        entropy = (abs(self._spec.seed), int(self._spec.seed < 0), ticket, retry, 2)
        question = Question(
            open_cells,
            self._spec.directions[0] == "maximize",
            entropy,
            self._limits,
            floor=int(FLOOR * self._spec.budget.trials / self._spec.n_cells),
        )
        model = self._model()
        with one_thread():
            return choose(model, self._mirror, question)

    def confirm(
        self,
        open_cells: OpenCells,
        *,
        ticket: int,
        retry: int,
        running: Sequence[int] = (),
        confirmed: Sequence[int] = (),
    ) -> tuple[int, int, dict[str, JSONValue]] | None:
        """The trial whose parameters get another trial with another seed, to learn which of the
        leading configurations is the best; a function of the news, the seed and the arguments.
        Running trials count as if they ended as predicted.

        Args:
            open_cells: ordinal and values of every cell that may get a trial; at least one.
            ticket: ordinal of the ticket in the study, from 0.
            retry: how often this ticket has failed before.
            running: numbers of the trials that others are about to repeat, of which there is no
                news yet.
            confirmed: numbers of all trials that were repeated for this reason, or are about to be,
                as often as they were.

        Returns:
            The ordinal of the cell, the trial's number, and the reason as JSON, as `choose_cell`
                gives it. None if one configuration is clearly the best, if those in `open_cells`
                cannot be, without noise, with fewer than ten complete trials or more than 20,000,
                or with several objectives.
        """
        model = self._model()
        if len(self._spec.directions) > 1:
            return None
        cells = {ordinal for ordinal, _ in open_cells}
        entropy = (abs(self._spec.seed), int(self._spec.seed < 0), ticket, retry, 3)
        with one_thread():
            found = confirm(
                model,
                self._mirror,
                np.random.default_rng(entropy),
                lambda number: self._cells.get(number) in cells,
                running,
                confirmed,
            )
        if found is None:
            return None
        number, why = found
        cell = self._cells[number]
        assert cell is not None
        return cell, number, why

    def enough(self, open_cells: OpenCells) -> Reasons:
        """Why the study has had enough trials by its `stop_when`: in words, under None, or with
        ``stop_when.scope=cell`` for every open cell that has, by its ordinal. Empty if none has, or
        no rule is set. A function of the news that ended, the seed and `open_cells`.

        That every cell has had its share is for the caller to know.

        Args:
            open_cells: ordinal and values of every cell that may get a trial; at least one.
        """
        known = self._finished, tuple(ordinal for ordinal, _ in open_cells)
        if self._enough_before is None or self._enough_before[0] != known:
            model = self._model()
            with one_thread():
                reasons = self._enough.reasons(
                    model, model.finished(self._mirror), open_cells, self._best.first(MOST_LIKELY)
                )
            self._enough_before = known, reasons
        return self._enough_before[1]

    def leaders(self) -> Leaders | None:
        """What the model believes of the configurations tried, the best one first, and of the
        noise; None with several objectives, or with fewer than ten complete trials. A function of
        the finished trials and the study's seed.
        """
        if len(self._spec.directions) > 1:
            return None
        with one_thread():
            tried = self._tried()
            return (
                None
                if tried is None
                else leaders(
                    tried,
                    maximize=self._spec.directions[0] == "maximize",
                    seed=abs(self._spec.seed),
                    limits=self._limits,
                )
            )

    def summary(self, cells: Sequence[Mapping[str, JSONValue]]) -> list[CellEstimate | None]:
        """An estimate of the best value that each cell can reach; None for a cell without a
        complete feasible trial.

        None throughout for several objectives. A function of the finished trials and the study's
        seed.

        Raises:
            ConfigError: a cell is not one of the grid.
        """
        for values in cells:
            self._internal_cell(values)
        if len(self._spec.directions) > 1:
            return [None] * len(cells)
        model = self._model()
        with one_thread():
            return summarise(
                Beliefs.of(model, self._mirror, cells, abs(self._spec.seed)),
                len(cells),
                self._tried(),
                maximize=self._spec.directions[0] == "maximize",
                limits=self._limits,
            )

    def science(
        self, cells: Sequence[Mapping[str, JSONValue]], *, untried: bool = False
    ) -> Science | None:
        """What the trials say about these cells and about the searched parameters: contrasts,
        interactions, importances, what is known and what is not; cells without a complete feasible
        trial are left out.

        None with several objectives, with fewer than ten complete feasible trials, with more than
        20,000, or if none of the cells has such a trial. A function of the finished trials and the
        study's seed, computed once until there is news; its estimates of cells are those of
        `summary`.

        Args:
            cells: those to compare, by their values.
            untried: also those that no trial has ended in, by what is known of the others.

        Raises:
            ConfigError: a cell is not one of the grid.
        """
        for values in cells:
            self._internal_cell(values)
        if len(self._spec.directions) > 1:
            return None
        question = json.dumps([untried, *cells])
        if self._analysed is None or self._analysed[0] != question:
            with one_thread():
                self._analysed = question, self._analyse(cells, untried)
        return self._analysed[1]

    def _analyse(self, cells: Sequence[Mapping[str, JSONValue]], untried: bool) -> Science | None:
        tried, model = self._tried(), self._model()
        if tried is None:
            return None
        seed = abs(self._spec.seed)
        believed = Beliefs.of(model, self._mirror, cells, seed, untried=untried)
        if believed is None:
            return None
        return analyse(
            model,
            believed,
            tried,
            self._spec.grid,
            cells,
            maximize=self._spec.directions[0] == "maximize",
            seed=seed,
            limits=self._limits,
        )

    def slices(
        self,
        cells: Sequence[Mapping[str, JSONValue]],
        estimates: Sequence[CellEstimate | None],
        ranking: Sequence[str] = (),
    ) -> Slices:
        """What the model believes along the searched parameters in the best of the cells, when each
        had had a few trials and now. A function of the finished trials and the study's seed.

        Args:
            cells: values of each cell.
            estimates: what `summary` says of each of them.
            ranking: paths of searched parameters, the most important first; any others follow by
                how much the prediction varies along them.

        Raises:
            ConfigError: a cell is not one of the grid.
        """
        for values in cells:
            self._internal_cell(values)
        if len(self._spec.directions) > 1:
            return Slices(why_not="With several objectives there is no one surrogate to draw.")
        model = self._model()
        with one_thread():
            return slices(
                model,
                self._mirror,
                self._parameters | self._discovered.parameters(),
                cells,
                estimates,
                maximize=self._spec.directions[0] == "maximize",
                limits=self._limits,
                ranking=ranking,
            )

    def should_prune(self, number: int, *, reports: Mapping[int, float]) -> bool:
        """The pruner's verdict for the running trial `number` whose reports so far are `reports`
        (step to value).

        Never true for a trial that was not fed, in a cell without a COMPLETE trial, in a study with
        several objectives, or for a repetition: if only lucky ones came to their end, they would
        tell nothing of the parameters' value. The order of `reports` does not matter.
        """
        stored = self._mirror.find(number)
        if stored is None or not reports or self._repeats(stored):
            return False
        trial = copy.copy(stored)
        trial.state = TrialState.RUNNING
        trial.intermediate_values = dict(reports)
        return self._judge.should_prune(self._mirror, trial, self._cells)

    def _tried(self) -> Configurations | None:
        """The configurations of the trials that have ended; found once until there is news."""
        if self._tried_before is None:
            model = self._model()
            self._tried_before = (Configurations.of(model, model.finished(self._mirror)),)
        return self._tried_before[0]

    def _repeats(self, trial: FrozenTrial) -> bool:
        """Whether parameters are searched, and a complete trial of its cell has the same."""
        cell = self._cells.get(trial.number)
        axes = {axis.path for axis in self._spec.grid}
        return bool(trial.params.keys() - axes) and any(
            other.params == trial.params
            for other in self._mirror.get_all_trials(0, deepcopy=False, states=(_COMPLETE,))
            if self._cells.get(other.number) == cell
        )

    def _model(self) -> CellModel:
        """The model of the cells, including the parameters that objectives requested."""
        if self._modelled is None or self._modelled[0] != self._discovered.space:
            model = CellModel(self._parameters | self._discovered.parameters(), self._fits)
            self._modelled = dict(self._discovered.space), model
        return self._modelled[1]

    @cached_property
    def _enough(self) -> Enough:
        return Enough(
            self._spec.stop_when,
            abs(self._spec.seed),
            self._spec.directions[0] == "maximize",
            self._limits,
            self._cells.get,
            self._values_of,
            self._counts_from,
        )

    def _values_of(self, ordinal: int) -> dict[str, JSONValue]:
        """The values of the cell of that ordinal, see `_ordinal`."""
        values: dict[str, JSONValue] = {}
        for axis in reversed(self._spec.grid):
            ordinal, place = divmod(ordinal, len(axis.values))
            values[axis.path] = axis.values[place]
        return dict(reversed(values.items()))

    @property
    def _limits(self) -> Limits:
        """Of the first objective: with several there are no estimates."""
        return self._spec.bounds[0] if self._spec.bounds else (None, None)

    @cached_property
    def _fits(self) -> Fits:
        return getattr(self._sampler, "fits", None) or Fits()

    def _sample(
        self, attrs: dict[str, Any], searched: list[Parameter], space: dict[str, BaseDistribution]
    ) -> tuple[dict[str, Any], dict[str, JSONValue]]:
        """External values of the searched parameters, and the attributes the sampler left on the
        trial.
        """
        mirror = self._mirror
        # it breeds only from trials that have every parameter
        if isinstance(self._sampler, GeneticSampler):
            mine = {p.path: p.distribution for p in searched}
            mirror = mirror.restricted(
                t
                for t in mirror.get_all_trials(0, deepcopy=False)
                if mine.items() <= t.distributions.items()
            )
        trial = blank_trial(self._mirror.next_number(), attrs)
        mirror.put(trial)
        try:
            study = mirror.study(sampler=self._sampler)
            drawn = self._sampler.sample_relative(study, trial, space)
            for parameter in searched:
                if parameter.path not in drawn:
                    path, d = parameter.path, parameter.distribution
                    drawn[path] = self._sampler.sample_independent(study, trial, path, d)
            latest = mirror.get_trial(trial.number).system_attrs
        finally:
            mirror.remove(trial.number)
        written = {key: value for key, value in latest.items() if key not in _OWN_KEYS}
        return {p.path: drawn[p.path] for p in searched}, written

    def _internal_cell(self, cell: Mapping[str, JSONValue]) -> dict[str, float]:
        axes = {path for path, parameter in self._parameters.items() if parameter.grid}
        if axes != set(cell):
            raise ConfigError(f"cell: needs a value for each of {sorted(axes)}, has {sorted(cell)}")
        return {path: self._parameters[path].internal(value) for path, value in cell.items()}

    def _internal_given(self, given: Mapping[str, JSONValue]) -> dict[str, float]:
        searched = {path for path, parameter in self._parameters.items() if not parameter.grid}
        if unknown := set(given) - searched:
            raise ConfigError(f"{', '.join(sorted(unknown))}: not searched in this study")
        return {path: self._parameters[path].internal(value) for path, value in given.items()}

    def _cell_of(self, news: TrialNews) -> int | None:
        """The place of a trial's cell among those of the grid; beyond them, for each cell that has
        been taken from the grid. None for a trial that is not ours.

        What the ledger says is not taken for it: by a later revision of the study a cell may have
        another ordinal than by this one.
        """
        if news.cell is None:
            return None
        values = {param.name: param.internal for param in news.params}
        if not self._places.keys() <= values.keys():
            return news.cell
        key = tuple(values[path] for path in self._places)
        if (place := self._place(key)) is not None:
            return place
        return self._elsewhere.setdefault(key, self._spec.n_cells + len(self._elsewhere))

    def _place(self, internal: Sequence[float]) -> int | None:
        """The place in the grid of a cell with these values of the axes, in their order."""
        ordinal = 0
        for value, places in zip(internal, self._places.values(), strict=True):
            if value not in places:
                return None
            ordinal = ordinal * len(places) + places[value]
        return ordinal

    def _ordinal(self, cell: Mapping[str, JSONValue]) -> int:
        """The place of a cell among those of the grid."""
        internal = self._internal_cell(cell)
        ordinal = self._place([internal[path] for path in self._places])
        if ordinal is None:
            raise ConfigError(f"{cell_label(cell)}: not on the grid")
        return ordinal

    def _within_now(self, limits: Mapping[str, list[float]]) -> dict[str, list[float]]:
        """The limits of a trial, within what is searched now where that is less than it was."""
        now = {
            path: parameter.limits
            for path, parameter in self._parameters.items()
            if parameter.limits is not None and not parameter.grid
        }
        result = {**limits}
        for path, limit in now.items():
            assert limit is not None
            low, high = result.get(path, limit)[0], result.get(path, limit)[-1]
            inside = [max(low, limit[0]), min(high, limit[-1])]
            result[path] = inside if path in limits and inside[0] <= inside[1] else limit
        return result

    def _softened(
        self, bounds: dict[str, list[float]], cell: Mapping[str, JSONValue], ticket: int
    ) -> dict[str, list[float]]:
        """The limits of the trial of a ticket, given the bounds that were found for its cell."""
        if not bounds:
            return {}
        number = self._best.number(self._ordinal(cell), FREE_EVERY)
        best = None if number is None else self._mirror.find(number)
        # A cell's tickets are a row apart where all cells get equally many; in a row every fourth
        # cell has a free one.
        row, place = divmod(ticket, self._spec.n_cells)
        return limits_in_effect(
            bounds, self._space, {} if best is None else best.params, row + place
        )

    def _checked_bounds(self, bounds: Mapping[str, tuple[float, float]]) -> dict[str, list[float]]:
        checked = {}
        for path, (low, high) in bounds.items():
            parameter = self._parameters.get(path)
            if (
                parameter is None
                or parameter.grid
                or isinstance(parameter.distribution, CategoricalDistribution)
            ):
                raise ConfigError(f"bounds of {path}: only a searched number has bounds")
            d: Any = parameter.distribution
            if not (low <= high and low <= d.high and high >= d.low):
                raise ConfigError(
                    f"bounds of {path}: [{low}, {high}] leaves nothing of [{d.low}, {d.high}]"
                )
            checked[path] = [float(low), float(high)]
        return checked
