"""The manifest's columns: their order, their types, and how a user chooses among them."""

from __future__ import annotations

import difflib
from enum import Enum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from audiobatch.answer_schema import REPLY_PREFIX
from audiobatch.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Kind(Enum):
    """The type of a column's cells, in every file format."""

    TEXT = "text"
    PATH = "path"
    CHECKS = "checks"
    COUNT = "count"
    SECONDS = "seconds"
    RATIO = "ratio"
    MONEY = "money"
    TIME = "time"


_KINDS: dict[str, Kind] = {
    "item_id": Kind.TEXT,
    "turn": Kind.COUNT,
    "status": Kind.TEXT,
    "input": Kind.PATH,
    "input_duration_s": Kind.SECONDS,
    "prompt": Kind.TEXT,
    "transcript": Kind.TEXT,
    "audio_file": Kind.PATH,
    "audio_duration_s": Kind.SECONDS,
    "transcript_file": Kind.PATH,
    "input_transcript": Kind.TEXT,
    "checks": Kind.CHECKS,
    "review": Kind.TEXT,
    "review_note": Kind.TEXT,
    "version": Kind.COUNT,
    "voice": Kind.TEXT,
    "format": Kind.TEXT,
    "model": Kind.TEXT,
    "deployment": Kind.TEXT,
    "provider": Kind.TEXT,
    "transport": Kind.TEXT,
    "attempts": Kind.COUNT,
    "perhaps_billed": Kind.COUNT,
    "latency_s": Kind.SECONDS,
    "input_text_tokens": Kind.COUNT,
    "input_audio_tokens": Kind.COUNT,
    "cached_tokens": Kind.COUNT,
    "output_text_tokens": Kind.COUNT,
    "output_audio_tokens": Kind.COUNT,
    "cost_usd": Kind.MONEY,
    "finish_reason": Kind.TEXT,
    "error_type": Kind.TEXT,
    "error_message": Kind.TEXT,
    "request_id": Kind.TEXT,
    "run_id": Kind.TEXT,
    "started_at": Kind.TIME,
    "finished_at": Kind.TIME,
    "parts": Kind.COUNT,
    "trimmed_s": Kind.SECONDS,
    "word_error_rate": Kind.RATIO,
    "input_sha256": Kind.TEXT,
    "fingerprint": Kind.TEXT,
    "cost_basis": Kind.TEXT,
}

#: Every column of our own, in the order in which scripts and spreadsheets rely on it.
COLUMNS: tuple[str, ...] = tuple(_KINDS)

#: Prefix of the columns that come from a prompt table; those of parsed answers have `REPLY_PREFIX`.
INPUT_PREFIX = "in."


def kind_of(column: str) -> Kind:
    """Return the type of a column; columns of other origin hold text."""
    return _KINDS.get(column, Kind.TEXT)


def is_own(column: str) -> bool:
    """Whether audiobatch writes this column; the others are a reviewer's."""
    return column in _KINDS or column.startswith((INPUT_PREFIX, REPLY_PREFIX))


def choose_columns(wanted: Iterable[str], extra_columns: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the columns that `--manifest-columns` names, in its order.

    Args:
        wanted: column names; `*` stands for any characters (`in.*`, `*_tokens`, `*` for all the rest).
            An empty list means every column. A `-` before a name or pattern leaves it out.
        extra_columns: this job's `in.…` and `reply.…` columns and those that a reviewer added.

    Raises:
        ConfigError: there is no column of that name; the message suggests the nearest.
    """
    known = tuple(dict.fromkeys((*COLUMNS, *extra_columns)))
    names = [name.strip() for name in wanted if name.strip()]
    left_out: set[str] = set()
    for name in names:
        if name.startswith("-"):
            left_out.update(_matching(name[1:], known))
    chosen: dict[str, None] = {}
    for name in names:
        if not name.startswith("-"):
            chosen.update(dict.fromkeys(_matching(name, known)))
    if not any(not name.startswith("-") for name in names):
        chosen = dict.fromkeys(known)
    return tuple(column for column in chosen if column not in left_out)


def _matching(name: str, known: Sequence[str]) -> list[str]:
    if name in known:
        return [name]
    if any(mark in name for mark in "*?"):
        return [column for column in known if fnmatchcase(column, name)]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ConfigError(f"--manifest-columns: there is no column {name!r}{hint} Known are: {', '.join(known)}")
