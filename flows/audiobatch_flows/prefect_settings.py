"""Which server the user has told Prefect to use, found without importing Prefect.

The places and their order are Prefect's own: the environment, `.env`, `prefect.toml` and `pyproject.toml` of the
working folder, and the active profile.
Source: prefect 3.8.8, `prefect/settings/sources.py` (2026-11).
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

NAME = "PREFECT_API_URL"


def api_url() -> str | None:
    """The address of the user's own server; None where they have named none."""
    folder = Path.cwd()
    found = (
        os.environ.get(NAME)
        or _dotenv(folder).get(NAME)
        or _within(_toml(folder / "prefect.toml"), "api", "url")
        or _within(_toml(folder / "pyproject.toml"), "tool", "prefect", "api", "url")
        or _profile(folder).get(NAME)
    )
    return str(found) if found else None


def _profile(folder: Path) -> dict[str, Any]:
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    path = (
        os.environ.get("PREFECT_PROFILES_PATH")
        or _dotenv(folder).get("PREFECT_PROFILES_PATH")
        or _within(_toml(folder / "prefect.toml"), "profiles_path")
        or _within(_toml(folder / "pyproject.toml"), "tool", "prefect", "profiles_path")
        or home / "profiles.toml"
    )
    profiles = _toml(Path(path).expanduser())
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
    profile = _within(profiles, "profiles", str(active))
    return profile if isinstance(profile, dict) else {}


def _dotenv(folder: Path) -> dict[str, str | None]:
    if not (folder / ".env").is_file():
        return {}
    from dotenv import dotenv_values

    return dict(dotenv_values(folder / ".env"))


def _toml(path: Path) -> dict[str, Any]:
    """Empty where there is none, or where it cannot be read: Prefect says so itself later."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _within(values: dict[str, Any], *keys: str) -> Any:
    found: Any = values
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found
