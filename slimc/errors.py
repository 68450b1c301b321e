"""Every error slimc raises on purpose, and the exit code the command line gives it.

A `UserError` is the user's to mend: one line that says what was wrong, where, and what would be accepted. It is printed
without a traceback. An `InternalError` is ours: it keeps its trace.
"""

from __future__ import annotations


class SlimcError(Exception):
    """Base of all slimc errors."""

    exit_code = 70  # EX_SOFTWARE of sysexits.h


class UserError(SlimcError):
    """A mistake the user can mend; printed as one line."""

    exit_code = 2


class CheckpointError(UserError):
    """A checkpoint that cannot be read, is damaged, or is not of a system that slimc knows."""


class BudgetError(UserError):
    """A budget that is missing, not a number, or outside (0, 1]."""


class OptionError(UserError):
    """An option whose value cannot be used with this input."""


class ModelFileError(UserError):
    """An ONNX model, reference or engine file that cannot be used."""


class OutputError(UserError):
    """An output path that cannot be written."""


class MismatchError(UserError):
    """Two networks that should agree do not."""

    exit_code = 1


class MissingError(UserError):
    """Something this machine lacks: a package, a GPU, TensorRT. The message says what to install."""

    exit_code = 3


class InternalError(SlimcError):
    """A defect of slimc itself; shown with its traceback."""


class ValidationError(InternalError):
    """An IR model that contradicts itself: a shape, an index set or a count that does not fit."""


class PassError(InternalError):
    """A pass was given a model it must refuse.

    Args:
        name: the pass.
        reason: what it found.
        hint: what to do first.
    """

    def __init__(self, name: str, reason: str, hint: str = "") -> None:
        super().__init__(f"{name}: {reason}" + (f" ({hint})" if hint else ""))
        self.name = name
        self.reason = reason
