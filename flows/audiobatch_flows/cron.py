"""When a schedule fires: a cron expression and a time zone, checked before anything is registered.

Prefect's own check says neither which field is wrong nor what it may be, accepts a field of seconds, and needs the
import of Prefect; here a misspelt expression is refused before any server is needed. cronsim, which Prefect brings,
accepts what Prefect refuses (`LW`, `5L`) and refuses what it accepts (`L5`). Tried with prefect 3.8.8, cronsim 2.8.
"""

from __future__ import annotations

import difflib
import os
import re
import zoneinfo
from pathlib import Path

from audiobatch.errors import ConfigError

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
#: Minute, hour, day of the month, month, day of the week: what each may be.
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 7, _DAYS),
)
_MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_PART = re.compile(r"(?P<first>\*|\w+)(?:-(?P<last>\w+))?(?:/(?P<step>\w+))?", re.ASCII)
_EXAMPLE = '"0 2 * * *" is every night at two, "*/15 8-18 * * mon-fri" every quarter of an hour at work'


def checked_cron(text: str) -> str:
    """Return the expression in five fields, `@daily` and the like written out.

    Raises:
        ConfigError: which field is wrong, and what it may be.
    """
    text = _MACROS.get(text.strip().lower(), text.strip())
    fields = text.split()
    if len(fields) != len(_FIELDS):
        raise ConfigError(
            f"--cron {text!r}: has {len(fields)} fields, and needs 5: minute, hour, day of the month, month, "
            f"day of the week. {_EXAMPLE}."
        )
    for given, (name, lowest, highest, names) in zip(fields, _FIELDS, strict=True):
        for part in given.split(","):
            if not _is_right(part.lower(), lowest, highest, names):
                or_name = f" or {names[0]} to {names[-1]}" if names else ""
                raise ConfigError(
                    f"--cron {text!r}: {part!r} is no {name}: {lowest} to {highest}{or_name}, *, a range (1-5), a "
                    f"step (*/15), or several with commas. {_EXAMPLE}."
                )
    return " ".join(fields)


def _is_right(part: str, lowest: int, highest: int, names: tuple[str, ...]) -> bool:
    match = _PART.fullmatch(part)
    if match is None:
        return False

    def value(text: str) -> int | None:
        if text in names:
            return lowest + names.index(text)
        return int(text) if text.isdecimal() and lowest <= int(text) <= highest else None

    first, last, step = match["first"], match["last"], match["step"]
    if step is not None and not (step.isdecimal() and 0 < int(step) <= highest):
        return False
    if first == "*":
        return last is None
    begin, end = value(first), value(last) if last is not None else None
    if begin is None or (last is not None and end is None):
        return False
    return end is None or begin <= end


def checked_timezone(name: str | None) -> str:
    """Return a time zone that exists; by default this machine's, or UTC where it does not say.

    Raises:
        ConfigError: there is no such zone; with the nearest name.
    """
    if name is None:
        return local_timezone()
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = zoneinfo.available_timezones()
        by_ending = {zone.rpartition("/")[2].lower(): zone for zone in sorted(known)}
        asked = name.replace(" ", "_")
        near = by_ending.get(asked.lower()) or next(iter(difflib.get_close_matches(asked, known, n=1)), None)
        hint = f"; did you mean {near}?" if near else "; names are like Europe/Berlin or UTC"
        raise ConfigError(f"--timezone {name!r}: there is no such time zone{hint}") from None
    return name


def local_timezone(etc: Path = Path("/etc")) -> str:
    """Return the name of this machine's time zone; UTC where the system does not say."""
    guesses = [os.environ.get("TZ", "").removeprefix(":")]
    link = etc / "localtime"
    if link.is_symlink():
        guesses.append(str(link.resolve()).rpartition("zoneinfo/")[2])
    if (etc / "timezone").is_file():
        guesses.append((etc / "timezone").read_text(encoding="utf-8", errors="replace").strip())
    known = zoneinfo.available_timezones()
    return next((guess for guess in guesses if guess in known), "UTC")
