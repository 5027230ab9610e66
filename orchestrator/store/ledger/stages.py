"""Chains of studies: a stage begins in the transaction that creates its study and writes what it
inherits, or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.errors import ConfigError
from orchestrator.faults import step as crash_step
from orchestrator.model import StudySpec
from orchestrator.revision import Extend, continued
from orchestrator.revision import changes as changes_of
from orchestrator.stages import Chain, Inherited
from orchestrator.store.connection.statement import (
    AnyConnection,
    Row,
    Statement,
    answer,
    answers,
    later,
    send,
)
from orchestrator.store.ledger.studies import (
    DEADLINE,
    LOCK_NAME,
    Launched,
    Studies,
    settings_changed,
)
from orchestrator.store.states import DELETING

if TYPE_CHECKING:
    from orchestrator.store.connection.plain import Source


@dataclass(frozen=True)
class NotBegun:
    """Why a stage was not begun, and nothing was written.

    ``moved``: the chain stands elsewhere than the caller has read: look again. ``stopped``: a
    person stopped it. ``late``: its time is over.
    """

    why: Literal["moved", "stopped", "late"]
    reason: str = ""


class Stages:
    """The transitions of a chain. The chain is locked before any study."""

    def __init__(self, database: Source) -> None:
        self._database = database
        self._studies = Studies(database)

    def launch(
        self, chain: Chain, ordinal: int, inherited: Inherited, extend: Extend | None = None
    ) -> Launched | NotBegun:
        """What a launch of the whole chain does: creates it or goes on with it, at its newest stage
        or at the one after that; keeps the declaration of the stages that have not begun.

        A chain that was paused or stopped goes on, and its time starts again.

        Args:
            inherited: what the stage inherits: of one that has begun, what is stored of it.
            extend: as of `Studies.launch`, for the study of a stage that has begun.

        Raises:
            ConfigError: a study has the chain's name, or one that is no stage has the stage's; a
                stage that has begun is declared otherwise; as `Studies.launch`.
        """
        with self._database.transaction(statement_s=300, lock_s=60, idle_s=30) as c:
            row, new = self._own(c, chain)
            begun = answers(c, _BEGUN, {"chain_id": row.chain_id})
            if held := _elsewhere(begun, ordinal, inherited):
                return held
            remarks: tuple[str, ...] = ()
            if not new:
                remarks = _changes(row.stages, chain, _next(begun))
                over = row.stages[: max(0, _next(begun) - 1)]
                _check_budget(over, chain)
                send(c, _DECLARE, {**_columns(chain, over), "chain_id": row.chain_id})
            launched = self._begin(c, row, chain, ordinal, inherited, begun, extend)
            if launched.open_tickets:
                later(c, _UNSETTLE, {"study_id": launched.study_id})
            return replace(launched, changes=(*launched.changes, *remarks))

    def go_on(self, chain: Chain, ordinal: int, inherited: Inherited) -> Launched | NotBegun:
        """Begins the next stage, if the one before is finished and nobody has begun it meanwhile,
        stopped the chain or used up its time. The stage of a paused chain begins paused.

        Raises:
            ConfigError: the chain was deleted; otherwise as `launch`.
        """
        with self._database.transaction(statement_s=300, lock_s=60, idle_s=30) as c:
            row = answer(c, _LOCK, {"name": chain.name})
            if row is None:
                raise ConfigError(f"the chain {chain.name} was deleted from the database")
            begun = answers(c, _BEGUN, {"chain_id": row.chain_id})
            if _next(begun) != ordinal or _elsewhere(begun, ordinal, inherited):
                return NotBegun("moved")
            if row.state == "STOPPED":
                return NotBegun("stopped", row.reason)
            if row.late:
                return NotBegun("late")
            launched = self._begin(c, row, chain, ordinal, inherited, begun)
            if row.state == "PAUSED":
                paused = {"study_id": launched.study_id, "reason": row.reason}
                send(c, _PAUSE_STUDY, paused)
                launched = replace(launched, reason=row.reason)
            return launched

    def settle(self, study_id: int) -> bool:
        """Notes that somebody was told how a stage ended; False if that was noted before."""
        with self._database.transaction() as c:
            return answer(c, _SETTLE, {"study_id": study_id}) is not None

    def hold(self, name: str, state: Literal["ACTIVE", "PAUSED", "STOPPED"], reason: str) -> None:
        """Says what becomes of the stages that have not begun: they begin, begin paused, or do not
        begin. The study of the stage that has begun is left as it is.

        Raises:
            ConfigError: there is no such chain, or it is being deleted and this is something else.
        """
        with self._database.transaction() as c:
            row = answer(c, _LOCK, {"name": name})
            if row is None:
                raise ConfigError(f"study.name={name}: the database has no chain of this name")
            if not reason.startswith(DELETING):
                _refuse_deleted(row, name)
            why = None if state == "ACTIVE" else reason
            send(c, _HOLD, {"chain_id": row.chain_id, "state": state, "reason": why})

    def delete(self, name: str) -> None:
        """Deletes a chain whose stages are all gone.

        Raises:
            ConfigError: one is not.
        """
        with self._database.transaction() as c:
            row = answer(c, _LOCK, {"name": name})
            if row is None:
                return
            if answers(c, _BEGUN, {"chain_id": row.chain_id}):
                raise ConfigError(f"the chain {name} has stages; they are to be deleted first")
            send(c, _DELETE, {"chain_id": row.chain_id})

    # ------------------------------------------------------------------------------------ the parts

    def _own(self, c: AnyConnection, chain: Chain) -> tuple[Row, bool]:
        """The chain's row, locked, and whether it was made now."""
        later(c, LOCK_NAME, {"name": chain.name})
        row, new = answer(c, _LOCK, {"name": chain.name}), False
        if row is None:
            if answer(c, _IS_STUDY, {"name": chain.name}) is not None:
                raise ConfigError(
                    f"study.name={chain.name}: the database has a study of this name, and a chain "
                    "of stages needs a name of its own: study.name=…"
                )
            send(c, _INSERT, _columns(chain))
            (row,), new = answers(c, _LOCK, {"name": chain.name}), True
        _refuse_deleted(row, chain.name)
        return row, new

    def _begin(
        self,
        c: AnyConnection,
        row: Row,
        chain: Chain,
        ordinal: int,
        inherited: Inherited,
        begun: Sequence[Row],
        extend: Extend | None = None,
    ) -> Launched:
        stage = chain.stages[ordinal]
        launched = self._studies.register(
            c, inherited.of(stage), extend, section=f"stages.{stage.name}."
        )
        if ordinal == _next(begun):
            if not launched.created:
                raise ConfigError(
                    f"study.name={chain.name}: the study of its stage {stage.name} is called "
                    f"{stage.spec.name}, and the database has one of this name that is no stage of "
                    "it; choose another name: study.name=…"
                )
            crash_step("stage-linked")
            place = {
                "chain_id": row.chain_id,
                "ordinal": ordinal,
                "name": stage.name,
                "study_id": launched.study_id,
                "inherited": json.dumps(inherited.to_json()),
            }
            send(c, _INSERT_STAGE, place)
        send(c, _BOUND, {"study_id": launched.study_id, "chain_id": row.chain_id})
        return launched


def _next(begun: Sequence[Row]) -> int:
    """The place of the stage after those that have begun."""
    return begun[-1].ordinal + 1 if begun else 0


def _elsewhere(begun: Sequence[Row], ordinal: int, inherited: Inherited) -> NotBegun | None:
    """Whether the chain does not stand where the caller thinks: at `ordinal`, its newest stage with
    that inheritance, or the next one after a finished study.
    """
    if ordinal == _next(begun) and (not begun or begun[-1].state == "FINISHED"):
        return None
    newest = bool(begun) and ordinal == begun[-1].ordinal
    same = newest and begun[-1].inherited == json.loads(json.dumps(inherited.to_json()))
    return None if same else NotBegun("moved")


def _changes(stored: Sequence[Mapping[str, Any]], chain: Chain, begun: int) -> tuple[str, ...]:
    """What differs from the last declaration, in words; the first `begun` stages have begun.

    The newest of those is left to `Studies.register`.

    Raises:
        ConfigError: a stage that has begun is missing, has another place, or inherits otherwise; or
            one before the newest has another identity.
    """
    remarks = []
    for k, old in enumerate(stored):
        name = old["name"]
        new = chain.stages[k] if k < len(chain.stages) else None
        if new is None or new.name != name:
            if k < begun:
                raise ConfigError(
                    f"stages[{k}]: the stage {name} of {chain.name} has begun, and stays where it "
                    "is; launch the stages under another name (study.name=…)"
                )
            remarks.append(f"stage {k + 1}: {name} -> {'none' if new is None else new.name}")
            continue
        inherits = new.to_json()["inherits"] == old["inherits"]
        if k < begun and not inherits:
            raise ConfigError(
                f"stages.{name}: this stage has begun, and what it inherits was decided then; "
                "freeze, narrow and carry must stay as they were. Launch the stages under another "
                "name (study.name=…) to begin anew"
            )
        before = StudySpec.from_json(old["spec"])
        after = continued(new.spec, before)
        different = [change.difference for change in changes_of(before, after)]
        changed = settings_changed(before, after)
        if k < begun - 1 and different:
            raise ConfigError(
                f"stages.{name}: this stage is over, and had a different "
                f"{'; a different '.join(different)}. Launch the stages under another name "
                "(study.name=…) to begin anew"
            )
        if k < begun - 1 and changed:
            remarks.append(f"nothing in stage {name}, which is over: not {'; not '.join(changed)}")
        if k >= begun and (different or changed or not inherits):
            what = [*different, *changed, *([] if inherits else ["what it inherits"])]
            remarks.append(f"stage {name}, which has not begun: {'; '.join(what)}")
    more = chain.stages[len(stored) :]
    remarks += [f"stage {len(stored) + k + 1}: none -> {s.name}" for k, s in enumerate(more)]
    return tuple(remarks)


def _refuse_deleted(row: Row, name: str) -> None:
    if (row.reason or "").startswith(DELETING):
        raise ConfigError(
            f"study.name={name}: this chain is {row.reason}; complete that with 'orchestrator "
            f"delete study.name={name}', or choose another name"
        )


def _check_budget(over: Sequence[Mapping[str, Any]], chain: Chain) -> None:
    """Raises ConfigError if the stages that are `over` have left too few trials for the others."""
    done = sum(stage["spec"]["budget"]["trials"] for stage in over)
    left = sum(stage.spec.budget.trials for stage in chain.stages[len(over) :])
    if chain.most is not None and done + left > chain.most:
        raise ConfigError(
            f"budget.trials={chain.most}: the stages that are over had {done} trials, and the "
            f"others have {left}; raise budget.trials to {done + left}, or lower the budget of a "
            "stage that is not over"
        )


def _columns(chain: Chain, over: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The chain's row; stages that are `over` stay as they were declared."""
    stages = [*over, *(stage.to_json() for stage in chain.stages[len(over) :])]
    return {
        "name": chain.name,
        "stages": json.dumps(stages),
        "hours": chain.hours,
    }


_LOCK = Statement(
    """
    SELECT k.chain_id, k.stages, k.state, k.reason,
        coalesce(k.deadline_at <= clock_timestamp(), false) AS late
    FROM orchestrator.chain k WHERE k.name = :name FOR NO KEY UPDATE
    """
)
# A stage whose study was deleted in a dashboard has not begun.
_BEGUN = Statement(
    """
    SELECT g.ordinal, g.name, g.inherited, s.study_id, s.state
    FROM orchestrator.stage g JOIN orchestrator.study s ON s.study_id = g.study_id
    JOIN studies p ON p.study_id = s.study_id
    WHERE g.chain_id = :chain_id ORDER BY g.ordinal
    """
)
_IS_STUDY = Statement("SELECT p.study_id FROM studies p WHERE p.study_name = :name")
_INSERT = Statement(
    f"""
    INSERT INTO orchestrator.chain (name, stages, deadline_at)
    VALUES (:name, CAST(:stages AS json), {DEADLINE})
    """
)
_DECLARE = Statement(
    f"""
    UPDATE orchestrator.chain
    SET stages = CAST(:stages AS json), state = 'ACTIVE', reason = NULL,
        launched_at = clock_timestamp(), deadline_at = {DEADLINE}
    WHERE chain_id = :chain_id
    """
)
_INSERT_STAGE = Statement(
    """
    INSERT INTO orchestrator.stage (chain_id, ordinal, name, study_id, inherited)
    VALUES (:chain_id, :ordinal, :name, :study_id, CAST(:inherited AS json))
    """
)
_BOUND = Statement(
    """
    UPDATE orchestrator.study s SET deadline_at = least(s.deadline_at, k.deadline_at)
    FROM orchestrator.chain k WHERE k.chain_id = :chain_id AND s.study_id = :study_id
    """
)
_PAUSE_STUDY = Statement(
    """
    UPDATE orchestrator.study SET state = 'PAUSED', reason = :reason
    WHERE study_id = :study_id AND state = 'ACTIVE'
    """
)
_SETTLE = Statement(
    """
    UPDATE orchestrator.stage SET settled_at = clock_timestamp()
    WHERE study_id = :study_id AND settled_at IS NULL RETURNING study_id
    """
)
_UNSETTLE = Statement("UPDATE orchestrator.stage SET settled_at = NULL WHERE study_id = :study_id")
_HOLD = Statement(
    "UPDATE orchestrator.chain SET state = :state, reason = :reason WHERE chain_id = :chain_id"
)
_DELETE = Statement("DELETE FROM orchestrator.chain WHERE chain_id = :chain_id")
