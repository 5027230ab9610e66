"""What a trial leaves in Optuna's tables for people: a few facts of its last attempt, and the
records of its artifacts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from orchestrator.model import JSONValue
from orchestrator.store.connection.statement import Statement

ARTIFACT_KEY = "artifacts:{}"
"""Of a trial's system attribute; Optuna's `upload_artifact` writes the record below it, as JSON
within JSON.
"""
FACT_KEYS = tuple(
    f"orchestrator:{name}" for name in ("host", "device", "commit", "peak_memory_mb", "duration_s")
)
"""User attributes for people, which no sampler has to read."""
FAILURE_ATTR = "orchestrator:failure"
"""User attribute of a failed trial: its kind and message, and of exhausted memory what is known of
that.
"""
_SHORT = 12
KEEP_STUDY_ATTR = Statement(
    """
    INSERT INTO study_system_attributes (study_id, key, value_json)
    VALUES (:study_id, :key, :text) ON CONFLICT (study_id, key) DO NOTHING
    """
)
"""Adds a system attribute of a study, with its value as JSON; one that is there keeps its value."""


def fact_attrs(facts: Mapping[str, Any]) -> dict[str, JSONValue]:
    """User attributes that tell host, device, commit, peak memory (MB of a million bytes) and
    duration (s), where known.
    """
    git, device, memory = facts.get("git"), facts.get("device"), facts.get("peak_memory_bytes")
    values = (
        facts.get("host"),
        device.get("name") if isinstance(device, Mapping) else None,
        _commit(git) if isinstance(git, Mapping) else None,
        round(memory / 1e6, 1) if isinstance(memory, int) else None,
        facts.get("duration_s"),
    )
    return {key: value for key, value in zip(FACT_KEYS, values, strict=True) if value is not None}


def _commit(git: Mapping[str, Any]) -> str:
    return f"{str(git.get('commit'))[:_SHORT]}{'-dirty' if git.get('dirty') else ''}"


def artifact_attrs(artifacts: Mapping[str, JSONValue]) -> dict[str, JSONValue]:
    """System attributes that hold the records of artifacts, by id."""
    return {
        ARTIFACT_KEY.format(artifact_id): json.dumps(record)
        for artifact_id, record in artifacts.items()
    }
