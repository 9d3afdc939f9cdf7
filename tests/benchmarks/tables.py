"""Tables of figures, as Markdown and as JSON, with the machine and the versions they were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime


@dataclass
class Table:
    """One benchmark's figures; `notes` stand below them."""

    name: str
    work: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        self.rows.append(list(cells))

    def markdown(self) -> str:
        lines = [f"### {self.name}: {self.work}", ""]
        lines.append("| " + " | ".join(self.columns) + " |")
        lines.append("|" + "|".join(" --- " for _ in self.columns) + "|")
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        if self.notes:
            lines += ["", *self.notes]
        return "\n".join(lines) + "\n"


def at_most(value: float, limit: float, unit: str = "") -> str:
    """An aim beside its figure: `≤ 1.1: yes`."""
    return f"≤ {limit:g}{unit}: {'yes' if value <= limit else 'no'}"


def at_least(value: float, limit: float, unit: str = "") -> str:
    return f"≥ {limit:g}{unit}: {'yes' if value >= limit else 'no'}"


def circumstances() -> dict[str, str]:
    """What the figures were measured on, and how busy it was with other work as they began."""
    versions = {
        name: importlib.metadata.version(name) for name in ("audiobatch", "openai", "prefect", "pandas")
    }
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "load": f"{os.getloadavg()[0]:.1f} before the start",
        "python": platform.python_version(),
        **versions,
    }
