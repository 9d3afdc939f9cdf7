"""How a flow's caller learns of an end that was none: errors that carry the run's summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from audiobatch.errors import AudioBatchError

if TYPE_CHECKING:
    from audiobatch.calls.stats import RunSummary


class RunFailed(AudioBatchError):
    """The run ended before its work did, or could do none of it.

    Attributes:
        summary: what was done all the same; `summary.exit_code` says why.
    """

    def __init__(self, message: str, summary: RunSummary) -> None:
        super().__init__(message)
        self.summary = summary

    def __reduce__(self) -> tuple[type[RunFailed], tuple[str, RunSummary]]:
        return type(self), (self.message, self.summary)


class RunInterrupted(RunFailed):
    """The run was stopped by a signal, or cancelled in Prefect, and drained."""
