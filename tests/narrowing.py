"""Narrow the type of a value in an assertion, and fail the test when the value is of another type."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from audiobatch.address import Address

T = TypeVar("T")


def present(value: T | None) -> T:
    """Return a value that must not be None."""
    assert value is not None
    return value


def local(output: Path | Address) -> Path:
    """Return an output that must be a local folder."""
    assert isinstance(output, Path)
    return output
