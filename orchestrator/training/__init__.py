"""Tools for those who train networks with torch: in a notebook, in an objective, in a probe.

This package knows nothing of studies, workers or databases, and needs only torch. What needs more
says so: `pip install 'orchestrator[training]'`.
"""

from orchestrator.training.backbones import Backbone, backbone
from orchestrator.training.batch_size import (
    BatchSizeFound,
    ClassesRule,
    classes_rule,
    find_batch_size,
)
from orchestrator.training.curve import LRCurve, Reading, Sweep
from orchestrator.training.curve_rules import NoAnswerError
from orchestrator.training.heads import mlp_head
from orchestrator.training.landscape import loss_landscape
from orchestrator.training.landscape_figures import compare_landscapes
from orchestrator.training.lr_range import lr_range_test
from orchestrator.training.memory import MemoryModel
from orchestrator.training.memory_errors import is_memory_error
from orchestrator.training.parts import Parts
from orchestrator.training.sam import SAM
from orchestrator.training.scaling import (
    Accumulation,
    accumulation_for,
    linear_scaling,
    power_scaling,
    sqrt_scaling,
    warmup_steps,
)
from orchestrator.training.schedules import SCHEDULES, Schedule, schedule
from orchestrator.training.sharpness import average_sharpness
from orchestrator.training.state import preserved
from orchestrator.training.surface import LossLandscape, Sharpness
from orchestrator.training.vision import import_torchvision

__all__ = [
    "SAM",
    "SCHEDULES",
    "Accumulation",
    "Backbone",
    "BatchSizeFound",
    "ClassesRule",
    "LRCurve",
    "LossLandscape",
    "MemoryModel",
    "NoAnswerError",
    "Parts",
    "Reading",
    "Schedule",
    "Sharpness",
    "Sweep",
    "accumulation_for",
    "average_sharpness",
    "backbone",
    "classes_rule",
    "compare_landscapes",
    "find_batch_size",
    "import_torchvision",
    "is_memory_error",
    "linear_scaling",
    "loss_landscape",
    "lr_range_test",
    "mlp_head",
    "power_scaling",
    "preserved",
    "schedule",
    "sqrt_scaling",
    "warmup_steps",
]
