"""Join the transcripts of a recording's parts, and write subtitles as SubRip (`.srt`) and WebVTT (`.vtt`).

Source: w3.org/TR/webvtt1 (a cue's text holds no `-->`, and `&` and `<` are written as entities); SubRip has no
standard, and players take plain text in numbered blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiobatch.audio.measure import spoken_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from audiobatch.audio.split import Part
    from audiobatch.model import Cue

#: Fast speech; more words than this cannot lie in an overlap.
_MOST_WORDS_PER_S = 6.0
_SPARE_WORDS = 4
#: Two words in a row match by chance about once in a thousand positions; one word often does.
_FEWEST_COMMON_WORDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """The transcript of one part, without the words that the previous part holds already.

    Attributes:
        start_s: time in the recording at which the part begins.
    """

    start_s: float
    text: str


def join_transcripts(parts: Sequence[Part], texts: Sequence[str]) -> tuple[Passage, ...]:
    """Join the parts' transcripts.

    Where a part overlaps the previous one, the text changes from one to the other after the longest run of words
    that both have in common; halves of words at the cut are dropped with it. Where they have nothing in common,
    both stay whole: a word twice is better than a word lost.

    Raises:
        ValueError: the numbers of parts and texts differ.
    """
    if len(parts) != len(texts):
        raise ValueError(f"{len(parts)} parts, {len(texts)} transcripts")
    joined: list[list[str]] = []
    for index, (part, text) in enumerate(zip(parts, texts, strict=True)):
        words = text.split()
        if index and part.overlap_s and joined[-1] and words:
            before = parts[index - 1].timeline.duration_s
            expected = part.overlap_s * len(texts[index - 1].split()) / before
            end, start = _seam(joined[-1], words, part.overlap_s, expected)
            joined[-1], words = joined[-1][:end], words[start:]
        joined.append(words)
    return tuple(
        Passage(start_s=part.start_s, text=" ".join(words)) for part, words in zip(parts, joined, strict=True)
    )


def to_text(passages: Sequence[Passage], *, with_times: bool = True) -> str:
    """Write the joined transcript: a paragraph a part, each with its time, or running text without times."""
    spoken = [passage for passage in passages if passage.text]
    if not with_times or len(passages) == 1:
        return " ".join(passage.text for passage in spoken)
    return "\n\n".join(f"[{clock(passage.start_s)}] {passage.text}" for passage in spoken)


def clock(at_s: float) -> str:
    """Format a time as `h:mm:ss`."""
    minutes, seconds = divmod(int(at_s), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _seam(before: list[str], after: list[str], overlap_s: float, expected: float) -> tuple[int, int]:
    """Return where the text before a cut ends and where the text after it starts, in words."""
    most = math.ceil(overlap_s * _MOST_WORDS_PER_S) + _SPARE_WORDS
    offset = max(0, len(before) - most)
    tail = [_key(word) for word in before[offset:]]
    head = [_key(word) for word in after[:most]]
    exact = [size for size in range(1, min(len(tail), len(head)) + 1) if tail[-size:] == head[:size]]
    if exact:
        size = min(exact, key=lambda size: abs(size - expected))
        if size >= _FEWEST_COMMON_WORDS or expected < 2 * _FEWEST_COMMON_WORDS:
            return len(before), size
    best = max(
        _common_runs(tail, head),
        key=lambda run: (run[2], -abs(len(tail) - run[0] + run[1] - expected)),
        default=(0, 0, 0),
    )
    at_tail, at_head, size = best
    if size < _FEWEST_COMMON_WORDS:
        return len(before), 0
    return offset + at_tail + size, at_head + size


def _common_runs(tail: list[str], head: list[str]) -> list[tuple[int, int, int]]:
    """Find all longest runs that two lists have in common: position in the first, in the second, length."""
    runs = []
    above = [0] * (len(head) + 1)
    for i, word in enumerate(tail):
        row = [0] * (len(head) + 1)
        for j, other in enumerate(head):
            if word and word == other:
                row[j + 1] = above[j] + 1
                runs.append((i - row[j + 1] + 1, j - row[j + 1] + 1, row[j + 1]))
        above = row
    return runs


def _key(word: str) -> str:
    """Normalize a word for comparison: no case, no punctuation."""
    return "".join(spoken_words(word))


def to_srt(cues: Iterable[Cue]) -> str:
    """Write cues as SubRip."""
    return "".join(
        f"{number}\n{_clock(cue.start_s, ',')} --> {_clock(cue.end_s, ',')}\n{_line(cue.text)}\n\n"
        for number, cue in enumerate(cues, 1)
    )


def to_vtt(cues: Iterable[Cue]) -> str:
    """Write cues as WebVTT."""
    blocks = (
        f"{_clock(cue.start_s, '.')} --> {_clock(cue.end_s, '.')}\n"
        f"{_line(cue.text).replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')}\n\n"
        for cue in cues
    )
    return "WEBVTT\n\n" + "".join(blocks)


def _line(text: str) -> str:
    """Write a cue's text on one line, since an empty line would end the cue, and without an arrow."""
    return " ".join(text.split()).replace("-->", "->")


def _clock(at_s: float, mark: str) -> str:
    milliseconds = max(0, round(at_s * 1000))
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{mark}{rest:03}"
