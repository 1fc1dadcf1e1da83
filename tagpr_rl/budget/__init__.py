"""What a recipe needs before it runs: bytes per device, tokens, FLOPs and hours. Imports no torch."""

from tagpr_rl.budget.memory import GIB, Part, Phase
from tagpr_rl.budget.shapes import DEVICES, SHAPES, Device, ModelShape, shape_of
from tagpr_rl.budget.stages import StageBudget, stage_budget

__all__ = [
    "DEVICES",
    "GIB",
    "SHAPES",
    "Device",
    "ModelShape",
    "Part",
    "Phase",
    "StageBudget",
    "shape_of",
    "stage_budget",
]
