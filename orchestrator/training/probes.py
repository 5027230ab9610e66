"""The probes that a study's ``probes`` section names: ``orchestrator.training.probes.lr_range``.

A probe is called as ``probe(cfg, trial, **options)`` once for each cell and kind of device, before
the cell's first trial, and returns a finding: ``bounds``, ``fixed``, ``infeasible``, ``largest``
and ``facts``, each only if there is any.
"""

from orchestrator.training.batch_probe import batch_fits
from orchestrator.training.lr_probe import lr_range

__all__ = ["batch_fits", "lr_range"]
