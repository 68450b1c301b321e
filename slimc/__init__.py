"""slimc: compile searched vision transformers into networks that are really small."""

__version__ = "0.1.0"
