"""audiobatch as Prefect flows, and its command line.

What `__all__` names is the public API; everything else may change with any version.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audiobatch_flows.endings import RunFailed, RunInterrupted
    from audiobatch_flows.flow import process_folder, speak_prompts
    from audiobatch_flows.worker_flow import drain

__all__ = ["RunFailed", "RunInterrupted", "drain", "process_folder", "speak_prompts"]

#: Where what is public is defined. It is imported when it is first asked for: `--help` needs no Prefect.
_HOMES = {
    "RunFailed": "audiobatch_flows.endings",
    "RunInterrupted": "audiobatch_flows.endings",
    "drain": "audiobatch_flows.worker_flow",
    "process_folder": "audiobatch_flows.flow",
    "speak_prompts": "audiobatch_flows.flow",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
