"""What several stories begin with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def prompts(tmp_path: Path) -> Callable[[int], dict[str, Any]]:
    """A table of so many prompts, as settings of a job without reports."""

    def make(count: int) -> dict[str, Any]:
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps({"prompt": f"Say number {n}."}) + "\n" for n in range(count)))
        return {"inputs": [str(path)], "output": str(tmp_path / "out"), "reports": "none"}

    return make
