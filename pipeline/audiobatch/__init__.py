"""audiobatch, the library: folders of recordings or text prompts in; spoken replies and a manifest out.

What `__all__` names is the public API; everything else may change with any version.

The work goes down once: `inputs → planning → calls [limits → transports] → storage and ledger → reports`, one
package each, and `execution` leads it. A Source becomes an Item, an Item's Turn a Request, a Request a Reply, a
Reply an Outcome, an Outcome a manifest row. Nothing here knows of Prefect: the package `audiobatch_flows` does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audiobatch.calls.stats import RunSummary
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.errors import (
        AudioBatchError,
        ConfigError,
        FolderInUse,
        InputError,
        NothingFound,
        ServiceError,
        StorageError,
    )
    from audiobatch.execution.job import Job, run
    from audiobatch.reports.manifest import read_manifest

__all__ = [
    "AudioBatchError",
    "ConfigError",
    "FolderInUse",
    "InputError",
    "Job",
    "JobSpec",
    "NothingFound",
    "RunSummary",
    "ServiceError",
    "StorageError",
    "read_manifest",
    "run",
]

#: Where what is public is defined. It is imported when it is first asked for: a probe's process needs none of it.
_HOMES = {
    "Job": "audiobatch.execution.job",
    "JobSpec": "audiobatch.config.jobspec",
    "RunSummary": "audiobatch.calls.stats",
    "read_manifest": "audiobatch.reports.manifest",
    "run": "audiobatch.execution.job",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "audiobatch.errors")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
