"""Split a long recording into requests: at silences near equal lengths, with an overlap only where there is none.

The parts have about the same length, and none is longer than the limit. Each cut lies in the middle of a silence
near the ideal position. Where nobody pauses there, the next part begins a few seconds before the cut, so that
every word is whole in one of the two; `join` removes the repeated words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from audiobatch.audio.channels import pick_channel
from audiobatch.audio.decode import open_recording
from audiobatch.audio.levels import LevelMeter, Levels, quiet_below_dbfs, runs_below, to_power
from audiobatch.audio.trim import Span, Timeline
from audiobatch.errors import working_on_input

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from audiobatch.audio.channels import Channels

#: Length of a part by default: about 1500 spoken words, whose transcript (2000 tokens) stays well
#: within the 4096 tokens that a reply is allowed by default.
PART_S = 600.0

#: A cut may lie this far from its ideal position, and at most this share of a part's length.
REACH_S = 30.0
_REACH_SHARE = 0.15

#: A pause between sentences; words in a sentence are rarely this far apart.
SENTENCE_PAUSE_S = 0.4
#: The shortest gap that is no plosive's closure (up to 0.15 s): it lies between words.
WORD_PAUSE_S = 0.2

#: How far parts overlap where there is no pause: the longest words and names take two seconds, and `join` needs two
#: or three common words to align the transcripts.
OVERLAP_S = 4.0

_SHORTEST_PART_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One request's share of a recording.

    Attributes:
        number: 1 for the first.
        timeline: the stretches of the recording that are sent.
        overlap_s: how much of the beginning repeats the end of the previous part.
    """

    number: int
    timeline: Timeline
    overlap_s: float

    @property
    def start_s(self) -> float:
        """Time in the recording at which this part begins."""
        return self.timeline.start_s


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCount:
    """An estimate of the parts of a recording, made before its pauses are known.

    Attributes:
        expected: the fewest, too: every cut lies near its ideal position.
        most: nobody pauses, or every cut lies as early as it may.
        repeated_s: the most that all overlaps add up to.
    """

    expected: int = 1
    most: int = 1
    repeated_s: float = 0.0


def count_parts(duration_s: float, *, longest_s: float = PART_S) -> PartCount:
    """Estimate how many parts `plan_parts` will make of a recording."""
    if duration_s <= longest_s:
        return PartCount()
    reach = _reach_s(longest_s)
    most, left = 1, duration_s
    while left > longest_s:
        left -= left / _parts_left(left, longest_s) - reach
        most += 1
    return PartCount(
        expected=_parts_left(duration_s, longest_s),
        most=most,
        repeated_s=(most - 1) * min(OVERLAP_S, reach),
    )


def measure_levels(path: Path, channels: Channels = "mix") -> Levels:
    """Measure the levels of a recording, streaming, for `plan_parts` and `trim.plan_trim`.

    Args:
        channels: the side that will be sent; `mix` measures every channel and counts the loudest.

    Raises:
        InputError: it cannot be read.
    """
    with working_on_input(path.name), open_recording(path) as sound:
        meter = LevelMeter(sound.sample_rate_hz)
        for block in sound.blocks():
            meter.add(block if channels == "mix" else pick_channel(block, channels))
        return meter.result()


def plan_parts(
    levels: Levels, *, longest_s: float = PART_S, timeline: Timeline | None = None
) -> tuple[Part, ...]:
    """Split a recording into parts of at most `longest_s`.

    Joined without their overlaps, the parts are exactly the timeline, to the frame.

    Args:
        timeline: the recording after trimming; None for all of it.

    Raises:
        ValueError: `longest_s` is too short, or the recording is empty.
    """
    if longest_s < _SHORTEST_PART_S:
        raise ValueError(f"parts of {longest_s} s are too short; at least {_SHORTEST_PART_S:.0f} s")
    whole = timeline or Timeline((Span(start_s=0.0, end_s=levels.duration_s),))
    power = _sent_power(levels, whole)
    quiet = to_power(quiet_below_dbfs(levels))
    parts: list[Part] = []
    start = done = 0.0
    while True:
        cut, overlap = _next_cut(
            power, hop_s=levels.hop_s, quiet=quiet, start_s=start, end_s=whole.duration_s, longest_s=longest_s
        )
        parts.append(Part(number=len(parts) + 1, timeline=whole.between(start, cut), overlap_s=done - start))
        if cut >= whole.duration_s:
            return tuple(parts)
        start, done = cut - overlap, cut


def _next_cut(
    power: NDArray[np.float32],
    *,
    hop_s: float,
    quiet: float,
    start_s: float,
    end_s: float,
    longest_s: float,
) -> tuple[float, float]:
    """Return where the part from `start_s` ends and how far the next part overlaps it; seconds of sent time."""
    left = end_s - start_s
    if left <= longest_s:
        return end_s, 0.0
    reach = _reach_s(longest_s)
    ideal = start_s + left / _parts_left(left, longest_s)
    first, last = int((ideal - reach) / hop_s), int((ideal + reach) / hop_s)
    window = power[first:last]
    for pause_s in (SENTENCE_PAUSE_S, WORD_PAUSE_S):
        pauses = runs_below(window, quiet, max(1, round(pause_s / hop_s)))
        middles = [(first + (begin + stop) / 2) * hop_s for begin, stop in pauses]
        if middles:
            return min(middles, key=lambda at: abs(at - ideal)), 0.0
    return ideal, min(OVERLAP_S, reach)


def _reach_s(longest_s: float) -> float:
    return min(REACH_S, longest_s * _REACH_SHARE)


def _parts_left(left_s: float, longest_s: float) -> int:
    """Return the number of equal parts of which none is too long even where its cut lies late."""
    return math.ceil(left_s / (longest_s - _reach_s(longest_s)))


def _sent_power(levels: Levels, timeline: Timeline) -> NDArray[np.float32]:
    """Return the windows' powers in sent time; stretches begin at the nearest window."""
    hop_s = levels.hop_s
    bounds = [(round(span.start_s / hop_s), round(span.end_s / hop_s)) for span in timeline.spans]
    return np.concatenate([levels.power[first:last] for first, last in bounds])
