"""Files that arrive while somebody watches: taken once they have stopped changing.

A file is taken when two looks, some seconds apart, find the same size and time of change. Nothing tells more on
every file system: whoever copies slower than that should copy under a hidden name (`.name`) and rename.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from audiobatch.errors import ConfigError
from audiobatch.inputs.discover import Discovery

if TYPE_CHECKING:
    from pathlib import Path

    from audiobatch.config.jobspec import JobSpec

#: Size in bytes and time of change in nanoseconds.
State = tuple[int, int]


@dataclass(slots=True)
class Arrivals:
    """A job's inputs, looked at again and again.

    Attributes:
        settled: files as the last look found them that were the same in the one before.
        arriving: how many the last look found that were not.
    """

    spec: JobSpec
    settled: dict[Path, State] = field(default_factory=dict)
    arriving: int = 0
    _seen: dict[Path, State] = field(default_factory=dict)
    _handled: dict[Path, State] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for given in self.spec.inputs:
            if given == "-" or "://" in given:
                raise ConfigError(
                    f"{given}: cannot be watched; --watch looks at folders and files on this machine"
                )

    def look(self) -> bool:
        """Look at the inputs once. Whether a settled file is new, or was changed, since the last `handled`."""
        seen: dict[Path, State] = {}
        for path in Discovery(self.spec).files():
            try:
                found = path.stat()
            except OSError:
                continue  # gone again; or not to be read, which is for the run to say
            seen[path] = (found.st_size, found.st_mtime_ns)
        self.settled = {path: state for path, state in seen.items() if self._seen.get(path) == state}
        self.arriving = len(seen) - len(self.settled)
        self._seen = seen
        return any(self._handled.get(path) != state for path, state in self.settled.items())

    def handled(self) -> None:
        """What is settled now was worked on."""
        self._handled = dict(self.settled)

    def is_arriving(self, path: Path) -> bool:
        """Whether a run is to leave this file for a later one."""
        return path not in self.settled
