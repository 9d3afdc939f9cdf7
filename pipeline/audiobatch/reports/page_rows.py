"""A manifest row as the page shows it: every value a finished text, nothing left to decide in the template."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from audiobatch.answer_schema import REPLY_PREFIX
from audiobatch.reports.links import AUDIO_STAMP, INPUT_LINK, file_at, href, is_audio_path
from audiobatch.reports.manifest import escape_controls
from audiobatch.reports.totals import duration_text, money_text, number, words

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from audiobatch.reports.manifest import ManifestRow
    from audiobatch.reports.waveforms import Pictures

_LONG_TEXT = 700
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Something to listen to."""

    kind: str
    url: str
    duration: str
    stamp: str
    path: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRow:
    """One row, ready to be shown. `key` is the item's id as `review.csv` writes it."""

    key: str
    turn: int
    version: int
    name: str
    folder: str
    status: str
    prompt: str
    heard: str
    transcript: str
    is_long: bool
    message: str
    error_type: str
    checks: tuple[str, ...]
    clips: tuple[Clip, ...]
    transcript_url: str
    review: str
    note: str
    facts: tuple[tuple[str, str], ...]
    answers: tuple[tuple[str, str], ...]
    cost: float
    duration_s: float
    latency_s: float


def page_row(row: ManifestRow, folder: Path, pictures: Pictures | None) -> PageRow:
    """The row as shown by a page in `folder`."""
    item_id = _text(row, "item_id")
    shown = visible(item_id)
    head, _, tail = shown.rpartition("/")
    transcript = visible(_text(row, "transcript"))
    return PageRow(
        key=escape_controls(item_id).replace("\r", "_x000D_"),  # HTML itself turns a CR into LF
        turn=int(number(row.get("turn")) or 1),
        version=int(number(row.get("version")) or 0),
        name=tail or shown,
        folder=head,
        status=_text(row, "status") or "pending",
        prompt=visible(_text(row, "prompt")),
        heard=visible(_text(row, "input_transcript")),
        transcript=transcript,
        is_long=len(transcript) > _LONG_TEXT,
        message=visible(_text(row, "error_message")),
        error_type=_text(row, "error_type"),
        checks=words(row.get("checks")),
        clips=tuple(_clips(row, folder, pictures)),
        transcript_url=href(row.get("transcript_file")),
        review=_text(row, "review"),
        note=visible(_text(row, "review_note")),
        facts=tuple(_facts(row)),
        answers=tuple(_answers(row)),
        cost=number(row.get("cost_usd")) or 0.0,
        duration_s=number(row.get("audio_duration_s")) or 0.0,
        latency_s=number(row.get("latency_s")) or 0.0,
    )


def visible(text: str) -> str:
    """The text with control characters as the pictures that Unicode has for them."""
    return _CONTROLS.sub(_picture, text)


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def _text(row: Mapping[str, object], column: str) -> str:
    value = row.get(column)
    return "" if value is None else str(value)


def _clips(row: ManifestRow, folder: Path, pictures: Pictures | None) -> list[Clip]:
    clips = []
    for kind, column, length in (
        ("input", "input", "input_duration_s"),
        ("reply", "audio_file", "audio_duration_s"),
    ):
        path = row[INPUT_LINK] if kind == "input" and INPUT_LINK in row else row.get(column)
        later_turn = kind == "input" and row.get("turn") not in (None, 1)
        if not isinstance(path, str) or not is_audio_path(path) or later_turn:
            continue
        if row.get("status") == "refused" and kind == "input":
            continue  # it is no recording: that is why it was refused
        seconds = number(row.get(length))
        duration = "" if seconds is None else duration_text(seconds)
        url = href(path)
        known = str(row.get(AUDIO_STAMP) or "") if kind == "reply" else ""
        stamp, picture = pictures.picture(url, file_at(folder, path), known) if pictures else ("", None)
        clips.append(Clip(kind=kind, url=url, duration=duration, stamp=stamp, path=picture))
    return clips


def _facts(row: ManifestRow) -> list[tuple[str, str]]:
    cost, latency_s = row.get("cost_usd"), number(row.get("latency_s"))
    facts = [
        ("voice", _text(row, "voice") if row.get("audio_file") else ""),
        ("deployment", _text(row, "deployment")),
        ("latency", "" if latency_s is None else duration_text(latency_s)),
        ("cost", "" if number(cost) is None else money_text(Decimal(str(cost)))),
        ("attempts", _text(row, "attempts") if (number(row.get("attempts")) or 0) > 1 else ""),
        ("version", _text(row, "version") if (number(row.get("version")) or 1) > 1 else ""),
    ]
    return [(name, visible(value)) for name, value in facts if value]


def _answers(row: ManifestRow) -> list[tuple[str, str]]:
    return [
        (visible(name.removeprefix(REPLY_PREFIX)), visible(str(value)))
        for name, value in row.items()
        if name.startswith(REPLY_PREFIX) and value not in (None, "")
    ]
