"""Checkpoints: what training scripts save, read without executing any of it."""

from slimc.files.checkpoint.read import ACCEPTED, Checkpoint, choose_weights, read_checkpoint

__all__ = ["ACCEPTED", "Checkpoint", "choose_weights", "read_checkpoint"]
