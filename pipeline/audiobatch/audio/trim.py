"""Long silences shortened before sending: the service bills recordings by time, and nobody speaks in them."""

from __future__ import annotations

from audiobatch.audio.levels import Levels, quiet_below_dbfs, runs_below, to_power
from audiobatch.audio.timeline import Span, Timeline

#: Silences up to this long are speech's own: pauses between sentences, for breath, for thought.
LONGEST_PAUSE_S = 1.5
#: What is left of a longer one, half after the speech before it and half before the speech after it: enough for
#: consonants that begin below the threshold, and to hear that there was a pause.
KEPT_S = 0.8


def plan_trim(
    levels: Levels, *, longest_pause_s: float = LONGEST_PAUSE_S, kept_s: float = KEPT_S
) -> Timeline | None:
    """What is left of a recording when its long silences are shortened; None where there is nothing to gain.

    `Timeline.to_source_s` gives the recording's time for any moment of what is sent; what is saved is
    `saved_s`. A recording that is silent throughout is left alone: whether to send it is another question.

    Raises:
        ValueError: more is to be kept than a pause is long.
    """
    if kept_s > longest_pause_s:
        raise ValueError(f"cannot keep {kept_s} s of pauses of {longest_pause_s} s")
    hop_s = levels.hop_s
    count = len(levels.power)
    least = int(longest_pause_s / hop_s) + 1
    margin = max(1, round(kept_s / 2 / hop_s))
    spans: list[Span] = []
    begin = 0
    for first, last in runs_below(levels.power, to_power(quiet_below_dbfs(levels)), least):
        stop = 0 if first == 0 else first + margin
        if stop > begin:
            spans.append(Span(start_s=begin * hop_s, end_s=stop * hop_s))
        begin = last if last == count else last - margin
    if begin < count and begin * hop_s < levels.duration_s:
        spans.append(Span(start_s=begin * hop_s, end_s=levels.duration_s))
    timeline = Timeline(tuple(spans)) if spans else None
    return timeline if timeline and saved_s(levels, timeline) > hop_s else None


def saved_s(levels: Levels, timeline: Timeline | None) -> float:
    """Seconds of the recording that a trim leaves out, and that are not billed."""
    return levels.duration_s - timeline.duration_s if timeline else 0.0
