"""Input files that arrive while a folder is watched (`--watch`): they are used once they have stopped changing.

A file has arrived when two looks, some seconds apart, find the same size and modification time. No file system says
more: programs that copy more slowly than that should copy under a hidden name (`.name`) and rename.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from audiobatch.errors import ConfigError
from audiobatch.inputs.discover import Discovery

if TYPE_CHECKING:
    from pathlib import Path

    from audiobatch.config.jobspec import JobSpec

#: Size in bytes and modification time in nanoseconds.
State = tuple[int, int]


@dataclass(slots=True)
class Arrivals:
    """A job's input files, as repeated looks find them.

    Attributes:
        settled: files that were the same in the last two looks.
        arriving: how many files of the last look were not.
    """

    spec: JobSpec
    settled: dict[Path, State] = field(default_factory=dict)
    arriving: int = 0
    _seen: dict[Path, State] = field(default_factory=dict)
    _handled: dict[Path, State] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for argument in self.spec.inputs:
            if argument == "-" or "://" in argument:
                raise ConfigError(
                    f"{argument}: cannot be watched; --watch looks at folders and files on this machine"
                )

    def look(self) -> bool:
        """Look at the inputs once.

        Returns:
            Whether a settled file is new, or has changed, since the last `handled`.
        """
        seen: dict[Path, State] = {}
        for path in Discovery(self.spec).files():
            try:
                status = path.stat()
            except OSError:
                continue  # deleted; or unreadable, which the run reports
            seen[path] = (status.st_size, status.st_mtime_ns)
        self.settled = {path: state for path, state in seen.items() if self._seen.get(path) == state}
        self.arriving = len(seen) - len(self.settled)
        self._seen = seen
        return any(self._handled.get(path) != state for path, state in self.settled.items())

    def handled(self) -> None:
        """Remember the settled files as done."""
        self._handled = dict(self.settled)

    def is_arriving(self, path: Path) -> bool:
        """Return whether a run leaves this file for a later one."""
        return path not in self.settled
