"""Checkpoints that outlive workers and hosts: every attempt has a directory of its own, filled from
the attempt before.

The number of an attempt grows with every claim of its trial, so it fences: whoever lost the trial
and does not know it yet writes where no later attempt reads. What is written lies in a directory,
or is uploaded to an object store (an fsspec URL).
"""

from orchestrator.runner.files.checkpoints import CheckpointError, Checkpoints, Kept

__all__ = ["CheckpointError", "Checkpoints", "Kept"]
