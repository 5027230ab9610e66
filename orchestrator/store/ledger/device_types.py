"""SQL about probes and the device types that they are measured on: the name of the device, and how
much memory it has.
"""

from __future__ import annotations

from orchestrator.store.ledger.shortages import ALIKE

SAME_TYPE = f"""(r.device_name = coalesce(d.device_name, 'CPU') AND CASE
    WHEN r.bytes = 0 OR coalesce(d.gpu_bytes, d.host_bytes, 0) = 0
        THEN r.bytes = coalesce(d.gpu_bytes, d.host_bytes, 0)
    ELSE greatest(r.bytes, coalesce(d.gpu_bytes, d.host_bytes))
        <= {ALIKE} * least(r.bytes, coalesce(d.gpu_bytes, d.host_bytes)) END)"""
"""SQL: whether the probe `r` is of the device type of the slot `d`, of which there may be none."""
HOLDER_LIVES = """EXISTS (
    SELECT FROM orchestrator.worker k WHERE k.worker_id = r.worker_id AND k.state = 'ACTIVE')"""
"""SQL: whether the worker that measures the probe `r` has not been evicted."""
_ANY = "EXISTS (SELECT FROM orchestrator.probe r WHERE r.state = 'RUNNING')"


def not_probed_elsewhere(cell_id: str) -> str:
    """SQL: whether no other living worker measures the cell on the device type of the slot `d`.

    Whether anything is measured at all is looked up once per statement, not once per row.
    """
    return f"""(NOT {_ANY} OR NOT EXISTS (
        SELECT FROM orchestrator.probe r
        WHERE r.cell_id = {cell_id} AND r.state = 'RUNNING' AND r.worker_id <> :worker_id
            AND {SAME_TYPE} AND {HOLDER_LIVES}))"""
