"""Programs that tests need and pip does not bring."""

from __future__ import annotations

import os
import shutil

import pytest


def need(tool: str) -> str:
    """The path of a program that a test needs: skipped where it is missing, but failed in CI."""
    found = shutil.which(tool)
    if found is None and os.environ.get("CI"):
        pytest.fail(f"{tool} is missing, and in CI it must be there")
    if found is None:
        pytest.skip(f"{tool} is not installed")
    return found
