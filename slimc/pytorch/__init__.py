"""From the intermediate representation to trainable PyTorch modules, and back."""

from slimc.pytorch.choices import Choices, choices
from slimc.pytorch.convert import export_program, from_torch, to_torch
from slimc.pytorch.network import VisionTransformer

__all__ = ["Choices", "VisionTransformer", "choices", "export_program", "from_torch", "to_torch"]
