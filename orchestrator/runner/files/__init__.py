"""Checkpoints that outlive workers and hosts: each attempt starts with the previous one's.

An attempt's number grows with every claim of its trial and so serves as a fence: a worker that has
lost the trial without noticing writes where no later attempt reads. Files stay in a directory, or
are uploaded to an object store (an fsspec URL).
"""

from orchestrator.runner.files.checkpoints import CheckpointError, Checkpoints, Kept

__all__ = ["CheckpointError", "Checkpoints", "Kept"]
