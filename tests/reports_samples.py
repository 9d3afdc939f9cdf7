"""Rows and recordings of a made-up job, for the tests of reports."""

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SAYINGS = (
    (
        "The recording is of a woman reading a short weather report. She speaks calmly, at an even pace, "
        "and ends with a forecast of light rain in the evening."
    ),
    "Two people greet each other, then one of them asks for the way to the station.",
    (
        "A man leaves a voice message about a parcel that did not arrive. He sounds patient but tired, "
        "and gives an order number twice so that it can be written down."
    ),
    "A child counts from one to ten, stumbles at seven, laughs, and starts again.",
    (
        "The speaker explains how to reset the device: hold the left button for five seconds, wait for "
        "the green light, then release it. The sound of a fan can be heard throughout."
    ),
)
CHECKS = ("near_silent", "truncated", "not_verbatim", "clipped", "speech_rate")


def sample_row(n: int, **changes: object) -> dict[str, Any]:
    """Row `n`: mostly a success, now and then a failure of some kind, always the same for the same `n`."""
    started = START + timedelta(seconds=n * 0.7)
    latency_s = 1.2 + (n * 37 % 100) / 40 + (4 if n % 29 == 0 else 0)
    row: dict[str, Any] = {
        "item_id": f"calls/{n // 20:03d}/call {n:05d}.wav",
        "turn": 1,
        "status": "succeeded",
        "input": f"in/{n % 7}.wav",
        "input_duration_s": 2.5 + n % 13,
        "prompt": "Describe in detail the spoken audio input.",
        "transcript": SAYINGS[n % len(SAYINGS)],
        "audio_file": f"audio/{n % 11}.wav",
        "audio_duration_s": 4.0 + (n * 17 % 23) + n % 4 / 4,
        "transcript_file": f"transcripts/calls/{n:05d}.txt",
        "input_transcript": "",
        "checks": (CHECKS[n // 9 % len(CHECKS)],) if n % 9 == 4 else (),
        "review": "",
        "review_note": "",
        "version": 1,
        "voice": ("alloy", "verse", "coral")[n % 3],
        "format": "wav",
        "model": "gpt-audio-1.5",
        "deployment": ("audio-sweden", "audio-sweden", "audio-east-us")[n % 3],
        "provider": "azure",
        "transport": "chat",
        "attempts": 1 + (n % 17 == 0),
        "perhaps_billed": 0,
        "latency_s": latency_s,
        "input_text_tokens": 18,
        "input_audio_tokens": 25 + n % 13 * 10,
        "cached_tokens": 0,
        "output_text_tokens": 60,
        "output_audio_tokens": 80 + n * 17 % 23 * 20,
        "cost_usd": Decimal(n % 23 + 9) / 1000 + Decimal("0.000125"),
        "finish_reason": "stop",
        "error_type": None,
        "error_message": None,
        "request_id": f"req-{n:08x}",
        "run_id": "20260301-120000-k3f9",
        "started_at": started,
        "finished_at": started + timedelta(seconds=latency_s),
        "parts": None,
        "trimmed_s": None,
        "word_error_rate": None,
        "input_sha256": f"{n:064x}",
        "fingerprint": f"{n * 7:064x}",
    }
    if n % 31 == 11:
        row |= _without_reply("failed", "content_filter", "The content filter refused the prompt: violence.")
    if n % 31 == 23:
        row |= _without_reply("refused", "input", f"call {n:05d}.wav is not audio: it begins with “<html>”.")
        row |= {"attempts": 0, "cost_usd": None, "deployment": "", "input_duration_s": None}
    return row | changes


def _without_reply(status: str, error_type: str, message: str) -> dict[str, Any]:
    empty = ("transcript", "audio_file", "audio_duration_s", "transcript_file", "latency_s", "finish_reason")
    return {**dict.fromkeys(empty), "checks": (), "version": None} | {
        "status": status,
        "error_type": error_type,
        "error_message": message,
    }


def chunks_of(rows: list[dict[str, Any]], size: int = 500) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows in chunks."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def speak_into(path: Path, seconds: float = 3.0, *, seed: int = 0, rate: int = 16_000) -> Path:
    """A file that looks and sounds a little like speech: syllables of a low buzz with pauses between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(int(seconds * rate)) / rate
    rng = np.random.default_rng(seed)
    beat = np.clip(np.sin(2 * math.pi * (2.3 + seed % 3 * 0.4) * t + seed), 0, None) ** 1.5
    phrase = np.clip(np.sin(2 * math.pi * t / (1.7 + seed % 5 * 0.3) + 0.6) + 0.55, 0, 1)
    swell = np.interp(t, np.linspace(0, seconds, 12), 0.35 + 0.65 * rng.random(12))
    buzz = sum(np.sin(2 * math.pi * (118 + seed * 7) * k * t) / k for k in range(1, 8))
    samples = 0.28 * buzz * beat * phrase * swell + 0.002 * rng.standard_normal(t.size)
    sf.write(path, samples.astype(np.float32), rate, subtype="PCM_16")
    return path


def make_recordings(folder: Path) -> None:
    """The files that `sample_row` names."""
    for n in range(7):
        speak_into(folder / f"in/{n}.wav", 2.5 + n, seed=n)
    for n in range(11):
        speak_into(folder / f"audio/{n}.wav", 4.0 + n, seed=n + 20)
