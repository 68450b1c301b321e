"""Slim files: a network in IR as one safetensors file, read without PyTorch and without running anything.

docs/reference/slim_file.md says what every byte means.
"""

from slimc.files.slim.container import is_slim
from slimc.files.slim.file import SlimFile, holds, read_slim, write_slim
from slimc.files.slim.values import DamagedError

__all__ = ["DamagedError", "SlimFile", "holds", "is_slim", "read_slim", "write_slim"]
