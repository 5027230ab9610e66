"""What a launch takes from other studies: their trials as they are now, and which configurations
of theirs run first. Under the study's lock, in the transaction of the launch.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.errors import ConfigError
from orchestrator.model import value_label
from orchestrator.store.connection.statement import AnyConnection, Statement, answers, send

if TYPE_CHECKING:
    from orchestrator.model import StudySpec
    from orchestrator.prior import Enqueued, Prior


def keep(c: AnyConnection, study_id: int, spec: StudySpec, priors: Sequence[Prior]) -> None:
    """Stores what the study takes from its sources; what it took before stays.

    Raises:
        ConfigError: nothing is there of a source.
    """
    if not spec.warm_start:
        return
    texts = [json.dumps(prior.to_json()) for prior in priors]
    names = [prior.source for prior in priors]
    which = {"study_id": study_id, "names": names, "texts": texts}
    if priors:
        send(c, _KEEP, which)
    there = {row.source for row in answers(c, _THERE, {"study_id": study_id})}
    for name in spec.warm_start:
        if name not in there:
            raise ConfigError(
                f"warm_start={value_label(name)}: nothing was read of this study; launch again"
            )


def enqueue(c: AnyConnection, study_id: int, spec: StudySpec, enqueued: Sequence[Enqueued]) -> None:
    """Gives tickets of a study that is being created the parameters of other studies' trials.

    They take their cells' shares, which then are the first of all; beyond the shares the first of
    the tickets without a cell, but none of those that confirm.
    """
    if not enqueued:
        return
    cells = sorted({one.cell for one in enqueued})
    shares = defaultdict(list)
    for row in answers(c, _SHARES, {"study_id": study_id, "cells": cells}):
        shares[row.cell].append(row)
    most = min(spec.beyond_shares, len(enqueued))
    rest = list(answers(c, _REST, {"study_id": study_id, "most": most}))
    taken = []
    for one in enqueued:
        of_cell = shares[one.cell] or rest
        if of_cell:
            taken.append((of_cell.pop(0), one))
    if not taken:
        return
    first = [row.ordinal for row, _ in taken if row.share is not None]
    send(
        c,
        _COPY,
        {
            "study_id": study_id,
            "tickets": [row.ticket_id for row, _ in taken],
            "cells": [one.cell for _, one in taken],
            "fixed": [json.dumps(dict(one.fixed)) for _, one in taken],
            "origins": [json.dumps({"study": one.source, "trial": one.number}) for _, one in taken],
        },
    )
    if bound := [one.cell for row, one in taken if row.share is None]:
        send(c, _COUNT, {"study_id": study_id, "cells": bound})
    _bring_forward(c, study_id, first)


def _bring_forward(c: AnyConnection, study_id: int, ordinals: Sequence[int]) -> None:
    """Makes the tickets of these ordinals the first of the study, in this order; those that were
    there take their places.
    """
    moved = dict(zip(ordinals, range(len(ordinals)), strict=True))
    left = iter(sorted(set(ordinals) - set(moved.values())))
    moved |= {place: next(left) for place in range(len(ordinals)) if place not in moved}
    which = {"study_id": study_id, "old": [*moved], "new": [*moved.values()]}
    send(c, _AWAY, which)  # no two tickets have one ordinal, not for a moment either
    send(c, _BACK, which)


_KEEP = Statement(
    """
    INSERT INTO orchestrator.prior (study_id, source, prior)
    SELECT CAST(:study_id AS int), v.name, CAST(v.text AS json)
    FROM unnest(CAST(:names AS text[]), CAST(:texts AS text[])) AS v(name, text)
    ON CONFLICT (study_id, source) DO NOTHING
    """
)
_THERE = Statement("SELECT i.source FROM orchestrator.prior i WHERE i.study_id = :study_id")
_SHARES = Statement(
    """
    SELECT t.ticket_id, t.ordinal, t.share, l.ordinal AS cell
    FROM orchestrator.cell l JOIN orchestrator.ticket t ON t.cell_id = l.cell_id
    WHERE l.study_id = :study_id AND l.ordinal = ANY(CAST(:cells AS int[]))
        AND t.share IS NOT NULL
    ORDER BY t.ordinal
    """
)
_REST = Statement(
    """
    SELECT t.ticket_id, t.ordinal, t.share FROM orchestrator.ticket t
    WHERE t.study_id = :study_id AND t.cell_id IS NULL ORDER BY t.ordinal LIMIT :most
    """
)
_COPY = Statement(
    """
    UPDATE orchestrator.ticket t
    SET cell_id = l.cell_id, fixed = CAST(v.fixed AS json), copied_from = CAST(v.origin AS json)
    FROM unnest(CAST(:tickets AS bigint[]), CAST(:cells AS int[]), CAST(:fixed AS text[]),
        CAST(:origins AS text[])) AS v(ticket_id, cell, fixed, origin)
    JOIN orchestrator.cell l ON l.study_id = :study_id AND l.ordinal = v.cell
    WHERE t.ticket_id = v.ticket_id
    """
)
_COUNT = Statement(
    """
    UPDATE orchestrator.cell l SET bound = bound + v.n
    FROM (
        SELECT u.cell, count(*) AS n FROM unnest(CAST(:cells AS int[])) AS u(cell) GROUP BY u.cell
    ) AS v
    WHERE l.study_id = :study_id AND l.ordinal = v.cell
    """
)
_AWAY = Statement(
    """
    UPDATE orchestrator.ticket t SET ordinal = -1 - v.new
    FROM unnest(CAST(:old AS int[]), CAST(:new AS int[])) AS v(old, new)
    WHERE t.study_id = :study_id AND t.ordinal = v.old
    """
)
_BACK = Statement(
    """
    UPDATE orchestrator.ticket t SET ordinal = -1 - t.ordinal
    WHERE t.study_id = :study_id AND t.ordinal < 0
    """
)
