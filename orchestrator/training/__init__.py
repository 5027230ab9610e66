"""Tools for those who train networks with torch: in a notebook, in an objective, in a probe.

This package knows nothing of studies, workers or databases, and needs only torch. What needs more
says so: `pip install 'orchestrator[training]'`.
"""

from orchestrator.training.backbones import Backbone, backbone
from orchestrator.training.heads import mlp_head
from orchestrator.training.parts import Parts
from orchestrator.training.sam import SAM
from orchestrator.training.state import preserved
from orchestrator.training.vision import import_torchvision

__all__ = ["SAM", "Backbone", "Parts", "backbone", "import_torchvision", "mlp_head", "preserved"]
