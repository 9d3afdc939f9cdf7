"""Trimming silence, and the map of times that keeps every offset true."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from audiobatch.audio.trim import LONGEST_PAUSE_S, SHORTENED_PAUSE_S, Span, Timeline, plan_trim, saved_s
from tests.test_audio_split import RATE, levels_of, talk


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    edges = sorted(draw(st.lists(st.integers(0, 4000), min_size=2, max_size=12, unique=True)))
    edges = edges[: len(edges) // 2 * 2]
    return Timeline(
        tuple(
            Span(start_s=first / 100, end_s=last / 100)
            for first, last in zip(edges[::2], edges[1::2], strict=True)
        )
    )


@given(timeline=timelines(), share=st.floats(0, 1))
def test_a_time_in_what_is_sent_leads_to_where_as_much_of_the_recording_was_sent(
    timeline: Timeline, share: float
) -> None:
    sent_s = share * timeline.duration_s
    source_s = timeline.to_source_s(sent_s)
    assert any(span.start_s - 1e-9 <= source_s <= span.end_s + 1e-9 for span in timeline.spans)
    sent_until = (min(source_s, span.end_s) - min(source_s, span.start_s) for span in timeline.spans)
    assert sum(sent_until) == pytest.approx(sent_s, abs=1e-6)


@given(timeline=timelines(), cuts=st.lists(st.floats(0, 1), max_size=4))
def test_pieces_of_a_timeline_put_together_are_the_timeline(timeline: Timeline, cuts: list[float]) -> None:
    edges = sorted({0.0, *(cut * timeline.duration_s for cut in cuts), timeline.duration_s})
    assume(all(later - earlier > 1e-3 for earlier, later in pairwise(edges)))
    pieces = [timeline.between(first, last) for first, last in pairwise(edges)]
    assert sum(piece.duration_s for piece in pieces) == pytest.approx(timeline.duration_s)
    assert pieces[0].start_s == timeline.start_s
    assert pieces[-1].end_s == pytest.approx(timeline.end_s)


@given(timeline=timelines(), sizes=st.lists(st.integers(1, 999), min_size=1, max_size=9))
def test_what_is_cut_does_not_depend_on_the_blocks(timeline: Timeline, sizes: list[int]) -> None:
    sound = np.arange(100 * 50, dtype=np.float32).reshape(-1, 1)
    blocks, at = [], 0
    while at < len(sound):
        for size in sizes:
            blocks.append(sound[at : at + size])
            at += size
    whole = np.concatenate(list(timeline.cut([sound], 100)))
    pieces = np.concatenate(list(timeline.cut(blocks, 100)))
    np.testing.assert_array_equal(whole, pieces)
    assert len(whole) == sum(
        max(0, min(round(span.end_s * 100), 5000) - round(span.start_s * 100)) for span in timeline.spans
    )


@given(
    stretches=st.lists(
        st.tuples(st.floats(0.3, 3), st.sampled_from([0.2, 1.0, 1.4, 2.0, 4.0, 9.0])), min_size=1, max_size=8
    )
)
def test_no_sound_is_lost_and_no_pause_is_left_longer_than_it_may_be(
    stretches: list[tuple[float, float]],
) -> None:
    samples = talk(stretches)
    levels = levels_of(samples)
    timeline = plan_trim(levels)
    kept = np.concatenate(list(timeline.cut([samples.reshape(-1, 1)], RATE))) if timeline else samples
    np.testing.assert_array_equal(kept[kept != 0].ravel(), samples[samples != 0])
    left = talk_pauses(kept.ravel())
    assert all(pause_s <= LONGEST_PAUSE_S + 0.05 for pause_s in left)
    assert saved_s(levels, timeline) == pytest.approx((len(samples) - len(kept)) / RATE, abs=0.002)


def talk_pauses(samples: np.ndarray) -> list[float]:
    quiet = np.concatenate(([False], samples == 0, [False]))
    edges = np.flatnonzero(quiet[1:] != quiet[:-1]).reshape(-1, 2)
    return [(last - first) / RATE for first, last in edges]


def test_a_word_behind_a_trimmed_pause_is_found_in_the_recording() -> None:
    levels = levels_of(talk([(2.0, 8.0), (2.0, 0.2)]))
    timeline = plan_trim(levels)
    assert timeline is not None
    assert timeline.to_source_s(2.0 + SHORTENED_PAUSE_S + 1.0) == pytest.approx(11.0, abs=0.05)


@pytest.mark.parametrize(
    "samples", [np.zeros(RATE * 10, np.float32), talk([(5.0, 0.3)])], ids=["silent", "busy"]
)
def test_where_nothing_is_to_gain_nothing_is_done(samples: NDArray[np.float32]) -> None:
    assert plan_trim(levels_of(samples)) is None


def test_more_than_the_pause_cannot_be_kept() -> None:
    with pytest.raises(ValueError, match="cannot shorten"):
        plan_trim(levels_of(talk([(1, 5)])), longest_pause_s=1, shortened_s=2)


@pytest.mark.parametrize("spans", [(), ((0, 2), (1, 3)), ((2, 3), (0, 1))])
def test_a_timeline_is_in_order_and_apart(spans: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="timeline"):
        Timeline(tuple(Span(start_s=first, end_s=last) for first, last in spans))
