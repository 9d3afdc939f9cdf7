"""Long recordings: cut in pauses, nothing lost, nothing said twice."""

from __future__ import annotations

import difflib
import io
import os
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audiobatch.audio.convert import prepare
from audiobatch.audio.join import Passage, clock, join_transcripts, to_text
from audiobatch.audio.levels import LevelMeter, Levels
from audiobatch.audio.probe import probe
from audiobatch.audio.split import OVERLAP_S, Part, count_parts, measure_levels, plan_parts
from audiobatch.audio.trim import Span, Timeline, plan_trim, saved_s
from tests import audio_corpus as corpus
from tests.test_audio_probe import MOST_MEMORY_MB, in_a_child

FULL = os.environ.get("AUDIOBATCH_FULL") == "1"
RATE = 8_000
SPARE = np.random.default_rng(5).standard_normal(RATE * 4).astype(np.float32)


def levels_of(samples: np.ndarray) -> Levels:
    meter = LevelMeter(RATE)
    meter.add(samples.reshape(-1, 1))
    return meter.result()


def talk(stretches: list[tuple[float, float]]) -> np.ndarray:
    """Noise in turn with silence: seconds of the one, seconds of the other, and so on."""
    pieces = []
    for loud_s, quiet_s in stretches:
        loud = np.resize(SPARE, round(loud_s * RATE)) * np.float32(0.1)
        pieces += [loud, np.zeros(round(quiet_s * RATE), np.float32)]
    return np.concatenate(pieces)


def bounds(parts: tuple[Part, ...], rate: int) -> list[tuple[int, int]]:
    return [
        (round(span.start_s * rate), round(span.end_s * rate))
        for part in parts
        for span in part.timeline.spans
    ]


stretches = st.lists(
    st.tuples(st.floats(0.5, 40), st.sampled_from([0.0, 0.1, 0.3, 0.6, 3.0])), min_size=1, max_size=12
)


@settings(max_examples=60)
@example(stretches=[(13.890625, 3.0), (6.0, 0.0)], longest_s=6.0, trimmed=True)  # cuts at half a frame
@given(stretches=stretches, longest_s=st.floats(5, 60), trimmed=st.booleans())
def test_parts_are_the_whole_recording_to_the_frame_and_none_is_too_long(
    stretches: list[tuple[float, float]], longest_s: float, trimmed: bool
) -> None:
    samples = talk(stretches)
    levels = levels_of(samples)
    timeline = plan_trim(levels) if trimmed else None
    parts = plan_parts(levels, longest_s=longest_s, timeline=timeline)
    whole = timeline or Timeline((Span(start_s=0, end_s=levels.duration_s),))
    sent = np.concatenate(
        [block for part in parts for block in _without_overlap(part).cut([samples.reshape(-1, 1)], RATE)]
    )
    expected = np.concatenate(list(whole.cut([samples.reshape(-1, 1)], RATE)))
    np.testing.assert_array_equal(sent, expected)
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    for part in parts:
        assert part.timeline.duration_s <= longest_s + 1e-6
        assert 0 <= part.overlap_s <= OVERLAP_S
    count = count_parts(whole.duration_s, longest_s=longest_s)
    assert count.expected <= len(parts) <= count.most
    assert sum(part.overlap_s for part in parts) <= count.repeated_s + 1e-6


def _without_overlap(part: Part) -> Timeline:
    return part.timeline.between(part.overlap_s, part.timeline.duration_s)


@settings(max_examples=40)
@given(stretches=st.lists(st.tuples(st.floats(2, 5), st.sampled_from([0.5, 0.8])), min_size=12, max_size=30))
def test_where_there_are_pauses_every_cut_lies_in_one_and_nothing_overlaps(
    stretches: list[tuple[float, float]],
) -> None:
    samples = talk(stretches)
    parts = plan_parts(levels_of(samples), longest_s=45)
    for part in parts[1:]:
        assert part.overlap_s == 0
        at = round(part.start_s * RATE)
        assert not samples[at - RATE // 10 : at + RATE // 10].any()


def test_where_nobody_pauses_the_parts_overlap() -> None:
    parts = plan_parts(levels_of(talk([(100.0, 0.0)])), longest_s=30)
    assert [part.overlap_s for part in parts[1:]] == [pytest.approx(OVERLAP_S)] * (len(parts) - 1)
    for earlier, later in pairwise(parts):
        assert later.start_s == pytest.approx(earlier.timeline.end_s - OVERLAP_S)


def test_parts_are_of_about_one_length() -> None:
    parts = plan_parts(levels_of(talk([(4.0, 0.5)] * 100)), longest_s=100)
    lengths = [part.timeline.duration_s for part in parts]
    assert len(parts) == 6
    assert max(lengths) - min(lengths) < 6


def test_a_short_recording_is_one_part() -> None:
    assert len(plan_parts(levels_of(talk([(4.0, 0.5)])))) == 1


def test_pauses_are_found_in_a_noisy_room_and_in_a_quiet_recording() -> None:
    for noise, loud in ((0.004, 1.0), (0.0, 0.02)):
        samples = talk([(3.0, 0.6)] * 20) * np.float32(loud)
        samples = samples + np.resize(SPARE, len(samples)) * np.float32(noise)
        parts = plan_parts(levels_of(samples), longest_s=30)
        assert all(part.overlap_s == 0 for part in parts)


def test_prepared_parts_are_the_recording(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(corpus.wav(np.tile(corpus.speech(10, 16_000), 3), 16_000))
    media = probe(path).media
    parts = plan_parts(measure_levels(path), longest_s=8)
    assert len(parts) >= 4
    joined = b"".join(prepare(path, media, timeline=_without_overlap(part)).data[44:] for part in parts)
    assert joined == path.read_bytes()[44:]


words = st.lists(st.sampled_from([f"word{number}" for number in range(60)]), min_size=1, max_size=120)


def part(number: int, start_s: float, end_s: float, overlap_s: float) -> Part:
    return Part(number=number, timeline=Timeline((Span(start_s=start_s, end_s=end_s),)), overlap_s=overlap_s)


@given(script=words, cut=st.floats(0, 1), common=st.integers(2, 12), case=st.booleans())
def test_what_an_overlap_says_twice_is_said_once(
    script: list[str], cut: int, common: int, case: bool
) -> None:
    at = max(common, round(cut * len(script)))
    if at > len(script):
        return
    first, second = script[:at], script[at - common :]
    words_per_s = 2.5
    parts = (
        part(1, 0, at / words_per_s, 0),
        part(2, (at - common) / words_per_s, len(script) / words_per_s, common / words_per_s),
    )
    texts = (" ".join(first), " ".join(second).upper() if case else " ".join(second))
    joined = " ".join(passage.text for passage in join_transcripts(parts, texts)).lower().split()
    assert joined == script


@given(script=words, cut=st.floats(0, 1))
def test_without_an_overlap_nothing_is_taken_out_even_if_words_repeat(script: list[str], cut: int) -> None:
    at = round(cut * len(script))
    parts = (part(1, 0, 10, 0), part(2, 10, 20, 0))
    passages = join_transcripts(parts, (" ".join(script[:at]), " ".join(script[at:])))
    assert " ".join(passage.text for passage in passages).split() == script
    assert [passage.start_s for passage in passages] == [0, 10]


def test_halves_of_words_at_the_edges_of_an_overlap_are_dropped() -> None:
    parts = (part(1, 0, 10, 0), part(2, 6, 16, 4))
    texts = ("We walked along the river until the old bri", "ver, until the old bridge, where we sat down.")
    joined = to_text(join_transcripts(parts, texts), with_times=False)
    assert joined == "We walked along the river until the old bridge, where we sat down."


def test_overlaps_that_were_heard_differently_are_kept_whole() -> None:
    parts = (part(1, 0, 10, 0), part(2, 6, 16, 4))
    passages = join_transcripts(parts, ("one two three", "four five six"))
    assert to_text(passages, with_times=False) == "one two three four five six"


def test_the_joined_text_shows_where_each_part_begins() -> None:
    passages = (Passage(start_s=0, text="Hello."), Passage(start_s=3725.5, text="Goodbye."))
    assert to_text(passages) == "[0:00:00] Hello.\n\n[1:02:05] Goodbye."
    assert clock(59.9) == "0:00:59"


def test_a_transcript_is_needed_for_every_part() -> None:
    with pytest.raises(ValueError, match="2 parts, 1 transcripts"):
        join_transcripts((part(1, 0, 1, 0), part(2, 1, 2, 0)), ("x",))


def monologue(
    minutes: float, *, pauses: bool, seed: int
) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """A known script as sound: its samples, and each word with its begin and end in seconds."""
    random = np.random.default_rng(seed)
    vocabulary = [
        f"{first}{second}" for first in "bdfgklmnprst" for second in ("a", "eno", "imo", "olu", "ur")
    ]
    script, at = [], 0.1
    while at < minutes * 60 - 3:
        for _ in range(random.integers(5, 14)):
            length = random.uniform(0.2, 0.45)
            script.append((str(random.choice(vocabulary)), at, at + length))
            at += length + (0.03 if pauses else 0.0)
        at += random.uniform(0.45, 1.2) if pauses else 0.0
    samples = np.zeros(round(at * RATE) + RATE, np.float32)
    for _, begin, end in script:
        first, last = round(begin * RATE), round(end * RATE)
        samples[first:last] = np.resize(SPARE, last - first) * np.float32(0.1)
    return samples, script


def heard(script: list[tuple[str, float, float]], first_s: float, last_s: float) -> list[str]:
    """What a perfect ear hears of a stretch: whole words, and what is left of those that the cuts went through."""
    said = []
    for word, begin, end in script:
        if begin >= first_s - 1e-6 and end <= last_s + 1e-6:
            said.append(word)
        elif begin < last_s and end > first_s:
            share = (min(end, last_s) - max(begin, first_s)) / (end - begin)
            if share > 0.3:
                said.append(word[: max(1, round(len(word) * share))] + "-")
    return said


def error_share(want: list[str], have: list[str]) -> float:
    matcher = difflib.SequenceMatcher(None, want, have, autojunk=False)
    wrong = sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in matcher.get_opcodes() if tag != "equal")
    return wrong / len(want)


@pytest.mark.parametrize("pauses", [True, False], ids=["with pauses", "without a pause"])
def test_joined_transcripts_are_the_script_within_half_a_point(pauses: bool) -> None:
    samples, script = monologue(120 if FULL else 30, pauses=pauses, seed=3)
    parts = plan_parts(levels_of(samples), longest_s=300)
    texts = [" ".join(heard(script, part.start_s, part.timeline.end_s)) for part in parts]
    joined = re.sub(r"[^\w\s-]", "", to_text(join_transcripts(parts, texts), with_times=False)).split()
    share = error_share([word for word, _, _ in script], joined)
    print(f"{len(parts)} parts, {len(script)} words, {100 * share:.3f} % wrong")
    assert share <= 0.005
    if pauses:
        assert share == 0


def test_two_hours_go_through_in_little_memory(tmp_path: Path) -> None:
    hours = 2 if FULL else 0.25
    path = tmp_path / "meeting.wav"
    with soundfile.SoundFile(path, "w", 44_100, 2, "PCM_16") as file:
        minute = np.repeat(np.tile(corpus.speech(12, 44_100), 5)[:, None], 2, axis=1)
        for _ in range(round(hours * 60)):
            file.write(minute)
    output, above_mb = in_a_child(
        "from pathlib import Path\n"
        "import time\n"
        "from audiobatch.audio.probe import probe\n"
        "from audiobatch.audio.split import plan_parts, measure_levels\n"
        "from audiobatch.audio.convert import prepare\n"
        "from audiobatch.audio.trim import plan_trim\n"
        "path = Path(sys.argv[1])\n"
        "media = probe(path).media\n"
        "levels = measure_levels(path)\n"
        "parts = plan_parts(levels, longest_s=300, timeline=plan_trim(levels))\n"
        "began = time.process_time()\n"
        "sent = sum(prepare(path, media, timeline=part.timeline).duration_s for part in parts)\n"
        "print(len(parts), media.duration_s, sent, time.process_time() - began)",
        str(path),
    )
    count, duration_s, sent_s, cpu_s = map(float, output.split())
    print(f"{count:.0f} parts of {duration_s:.0f} s, prepared in {cpu_s:.1f} s, {above_mb:.0f} MB above idle")
    assert hours * 12 <= count <= hours * 3600 / 270 + 1
    assert sent_s == pytest.approx(duration_s, abs=0.01 * count)
    assert above_mb < MOST_MEMORY_MB


def test_trimming_saves_what_it_says(tmp_path: Path) -> None:
    samples = talk([(2.0, 5.0), (3.0, 0.5), (1.0, 10.0)])
    path = tmp_path / "x.wav"
    path.write_bytes(corpus.wav(samples, RATE))
    levels = measure_levels(path)
    timeline = plan_trim(levels)
    assert timeline is not None
    part_ = prepare(path, probe(path).media, timeline=timeline)
    assert part_.duration_s == pytest.approx(levels.duration_s - saved_s(levels, timeline), abs=0.001)
    assert saved_s(levels, timeline) == pytest.approx(4.2 + 9.6, abs=0.1)
    sent, rate = soundfile.read(io.BytesIO(part_.data), dtype="float32")
    assert np.count_nonzero(np.abs(sent) > 0.01) / rate == pytest.approx(
        np.count_nonzero(np.abs(samples) > 0.01) / RATE, rel=0.05
    )
