"""What goes wrong with foreign checkpoints."""

from __future__ import annotations


class ConversionError(ValueError):
    """A checkpoint that cannot be read or written as asked; the message names the value and the fix."""


class Undecided(ConversionError):
    """Something that the tensors do not tell and that has to be given."""
