"""The recognizer's process: PocketSphinx. Run as `python -m audiobatch_emulator.pocketsphinx_engine`.

What it takes to hear well and always the same, measured on ten sentences in thirteen voices:

- The level is brought to -20 dBFS, and a little noise is laid under it, since synthetic silence confuses
the
  recognizer. The noise is always the same.
- A decoder adapts to what it hears; it is set back before each piece, so that no recording colours the
next. - Silence and tones are given words too, surely and wrongly: what cannot be speech is not handed to
it. - A long recording is cut at its pauses first, which keeps recognition and memory steady.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pocketsphinx import Decoder, Endpointer, Vad

from audiobatch_emulator.decoding import RECOGNIZER_RATE_HZ, Undecodable, decode
from audiobatch_emulator.engine_child import Alive, Answer, serve
from audiobatch_emulator.measuring import Measurer
from audiobatch_emulator.speech_gate import can_be_speech

LANGUAGE_WEIGHT = (
    4.0  # the default is 6.5; the voices are strange to the model, so its guesses count for less
)
TARGET_RMS = 0.1  # -20 dBFS
LARGEST_GAIN = 30.0
NOISE_RMS = 1e-3  # -60 dBFS
PAD_S = 0.3
WHOLE_UP_TO_S = 20  # a longer recording is cut at its pauses
LONGEST_PIECE_S = 30
PAUSE_S = 0.24
FRAMES_PER_S = 100  # the recognizer's

Samples = NDArray[np.float32]
Word = tuple[str, float, float, float]  # text, start and end in seconds, confidence

# `<sil>`, `[NOISE]`, `++UH++`: sounds that are no words; `have(2)`: a word's second pronunciation.
_NO_WORD = re.compile(r"[<\[+]")
_PRONUNCIATION = re.compile(r"\(\d+\)$")


class Engine:
    """Hears one recording after the other, each as if it were the first."""

    def __init__(self) -> None:
        self._decoder = Decoder(lw=LANGUAGE_WEIGHT, loglevel="FATAL")

    def answer(self, header: dict[str, Any], payload: bytes, alive: Alive) -> Answer:
        """Returns the words of the recording in `payload`, and its measurements; or why it cannot be decoded."""
        measurer = Measurer()
        words: list[Word] = []
        try:
            for start_s, piece in pieces(_measured(decode(payload), measurer, alive)):
                if can_be_speech(piece):
                    words.extend(self._words(start_s, piece))
                alive()
        except Undecodable as error:
            return {"undecodable": str(error)}, b""
        measured = measurer.result()
        return {
            "words": words,
            "duration_s": measured.duration_s,
            "level_dbfs": measured.level_dbfs,
            "silence_share": measured.silence_share,
            "pitch_hz": measured.pitch_hz,
        }, b""

    def _words(self, start_s: float, piece: Samples) -> Iterator[Word]:
        decoder = self._decoder
        decoder.reinit_feat()  # forgets the channel it adapted to, and the noise it measured
        decoder.start_utt()
        decoder.process_raw(_conditioned(piece), full_utt=True)
        decoder.end_utt()
        end_s = start_s + len(piece) / RECOGNIZER_RATE_HZ
        for segment in decoder.seg() or ():
            if not _NO_WORD.match(segment.word):
                yield (
                    _PRONUNCIATION.sub("", segment.word),
                    round(max(start_s, start_s - PAD_S + segment.start_frame / FRAMES_PER_S), 3),
                    round(min(end_s, start_s - PAD_S + (segment.end_frame + 1) / FRAMES_PER_S), 3),
                    round(min(1.0, segment.prob), 4),
                )


def _measured(blocks: Iterable[Samples], measurer: Measurer, alive: Alive) -> Iterator[Samples]:
    for block in blocks:
        measurer.add(block)
        alive()
        yield block


def pieces(blocks: Iterator[Samples]) -> Iterator[tuple[float, Samples]]:
    """Yields a recording's pieces and when they start, in seconds: itself if it is short, else what is between
    pauses.

    Args:
        blocks: of one second, mono, at 16 kHz.
    """
    opening = list(itertools.islice(blocks, WHOLE_UP_TO_S + 1))
    if len(opening) <= WHOLE_UP_TO_S:
        if opening:
            yield 0.0, np.concatenate(opening)
        return
    # The pauses are found by level, so a quiet recording is raised first, by what its opening needs.
    loud_rms = max(float(np.sqrt(np.mean(block**2))) for block in opening)
    gain = min(LARGEST_GAIN, TARGET_RMS / max(loud_rms, 1e-9))
    # A shorter window and a stricter judge than the defaults, which pass over the pauses between sentences.
    endpointer = Endpointer(window=PAUSE_S, vad_mode=Vad.MEDIUM_STRICT, sample_rate=RECOGNIZER_RATE_HZ)
    speech: list[bytes] = []
    longest_bytes = 2 * LONGEST_PIECE_S * RECOGNIZER_RATE_HZ
    start_s, was_in_speech = 0.0, False

    def piece() -> tuple[float, Samples]:
        joined = b"".join(speech)
        speech.clear()
        return start_s, np.frombuffer(joined, "<i2").astype(np.float32) / np.float32(32768 * gain)

    for frame in _frames(itertools.chain(opening, blocks), gain, endpointer.frame_bytes):
        is_last = len(frame) < endpointer.frame_bytes
        heard = endpointer.end_stream(frame) if is_last else endpointer.process(frame)
        if heard is None:
            continue
        if not was_in_speech:
            start_s = endpointer.speech_start
        was_in_speech = endpointer.in_speech
        speech.append(heard)
        if not was_in_speech:
            yield piece()
        elif sum(map(len, speech)) >= longest_bytes:
            cut = piece()
            yield cut
            start_s += len(cut[1]) / RECOGNIZER_RATE_HZ
    if speech:
        yield piece()


def _frames(blocks: Iterable[Samples], gain: float, frame_bytes: int) -> Iterator[bytes]:
    """Yields the blocks as s16le in frames of that size; the last is shorter, but holds a sample at least."""
    rest = b""
    for block in blocks:
        rest += _s16le(block * np.float32(gain))
        whole = len(rest) - len(rest) % frame_bytes
        yield from (rest[start : start + frame_bytes] for start in range(0, whole, frame_bytes))
        rest = rest[whole:]
    yield rest or bytes(2)  # the endpointer fails on an empty end


def _conditioned(piece: Samples) -> bytes:
    """Brings a piece to the level the recognizer likes, with a margin and a noise floor; s16le."""
    rms = float(np.sqrt(np.mean(piece**2)))
    margin = np.zeros(round(PAD_S * RECOGNIZER_RATE_HZ), np.float32)
    levelled = np.concatenate([margin, piece * np.float32(min(LARGEST_GAIN, TARGET_RMS / rms)), margin])
    noise = np.random.default_rng(1).normal(0.0, NOISE_RMS, len(levelled))
    return _s16le(levelled + noise.astype(np.float32))


def _s16le(samples: Samples) -> bytes:
    encoded: bytes = np.clip(np.round(samples * 32767), -32768, 32767).astype("<i2").tobytes()
    return encoded


if __name__ == "__main__":
    serve(Engine().answer, at_end=lambda: None)
