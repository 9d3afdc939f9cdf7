"""Words with their times as subtitles: SubRip (`.srt`) and WebVTT (`.vtt`).

Source: w3.org/TR/webvtt1 (a cue's text holds no `-->`, and `&` and `<` are written as entities); SubRip has no
standard, and players take plain text in numbered blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from audiobatch.model import Cue


def to_srt(cues: Iterable[Cue]) -> str:
    """The cues as SubRip."""
    return "".join(
        f"{number}\n{_clock(cue.start_s, ',')} --> {_clock(cue.end_s, ',')}\n{_line(cue.text)}\n\n"
        for number, cue in enumerate(cues, 1)
    )


def to_vtt(cues: Iterable[Cue]) -> str:
    """The cues as WebVTT."""
    blocks = (
        f"{_clock(cue.start_s, '.')} --> {_clock(cue.end_s, '.')}\n"
        f"{_line(cue.text).replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')}\n\n"
        for cue in cues
    )
    return "WEBVTT\n\n" + "".join(blocks)


def _line(text: str) -> str:
    """A cue's text: on one line, since an empty one would end the cue; no arrow, which would begin another."""
    return " ".join(text.split()).replace("-->", "->")


def _clock(at_s: float, mark: str) -> str:
    milliseconds = max(0, round(at_s * 1000))
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{mark}{rest:03}"
