"""What was heard, in the five formats of a transcription.

Segments are cut where the speaker pauses, or after a dozen words. Token ids are not made up: the lists are empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import orjson

from audiobatch_emulator.config import WHISPER_MODELS
from audiobatch_emulator.hearing import HeardWord, Hearing
from audiobatch_emulator.tokens import TokenCounts, audio_in_tokens, text_tokens
from audiobatch_emulator.transcription_request import TranscriptionRequest

PAUSE_S = 0.6
MOST_WORDS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of speech."""

    start_s: float
    end_s: float
    text: str
    confidence: float


def segments_of(words: Sequence[HeardWord]) -> list[Segment]:
    """Groups the words into segments."""
    groups: list[list[HeardWord]] = [[words[0]]] if words else []
    for before, word in pairwise(words):
        if word.start_s - before.end_s >= PAUSE_S or len(groups[-1]) >= MOST_WORDS:
            groups.append([])
        groups[-1].append(word)
    return [
        Segment(
            start_s=group[0].start_s,
            end_s=group[-1].end_s,
            text=" ".join(word.text for word in group),
            confidence=sum(word.confidence for word in group) / len(group),
        )
        for group in groups
    ]


def counts_of(hearing: Hearing, asked: TranscriptionRequest, model: str) -> TokenCounts:
    """Returns what it is charged by; Whisper is charged by time, and its counts are 0."""
    if model in WHISPER_MODELS:
        return TokenCounts()
    return TokenCounts(
        input_text=text_tokens(asked.prompt),
        input_audio=audio_in_tokens(hearing.duration_s),
        output_text=text_tokens(hearing.text),
    )


def transcription(hearing: Hearing, asked: TranscriptionRequest, model: str) -> tuple[bytes, str]:
    """Returns the body and its content type."""
    segments = segments_of(hearing.words)
    match asked.response_format:
        case "text":
            return f"{hearing.text}\n".encode(), "text/plain; charset=utf-8"
        case "srt":
            return _srt(segments).encode(), "text/plain; charset=utf-8"
        case "vtt":
            return _vtt(segments).encode(), "text/plain; charset=utf-8"
        case "verbose_json":
            body = _verbose(hearing, segments, asked)
        case _:
            body = {"text": hearing.text}
    return orjson.dumps(body | {"usage": _usage(hearing, asked, model)}), "application/json"


def _usage(hearing: Hearing, asked: TranscriptionRequest, model: str) -> dict[str, Any]:
    """Returns the usage, of two shapes. Source: `openai` 3.51.0, `types/audio/transcription.py`."""
    if model in WHISPER_MODELS:
        return {"type": "duration", "seconds": round(hearing.duration_s)}
    counts = counts_of(hearing, asked, model)
    into = counts.input_text + counts.input_audio
    return {
        "type": "tokens",
        "input_tokens": into,
        "output_tokens": counts.output_text,
        "total_tokens": into + counts.output_text,
        "input_token_details": {"text_tokens": counts.input_text, "audio_tokens": counts.input_audio},
    }


def _verbose(hearing: Hearing, segments: Sequence[Segment], asked: TranscriptionRequest) -> dict[str, Any]:
    body: dict[str, Any] = {
        "task": "transcribe",
        "language": "english",
        "duration": round(hearing.duration_s, 2),
        "text": hearing.text,
    }
    if asked.segments:
        body["segments"] = [
            {
                "id": number,
                "seek": 0,
                "start": round(segment.start_s, 2),
                "end": round(segment.end_s, 2),
                "text": f" {segment.text}",
                "tokens": [],
                "temperature": asked.temperature,
                "avg_logprob": round(segment.confidence - 1, 4),
                "compression_ratio": 1.0,
                "no_speech_prob": round(1 - segment.confidence, 4),
            }
            for number, segment in enumerate(segments)
        ]
    if asked.words:
        body["words"] = [
            {"word": word.text, "start": round(word.start_s, 2), "end": round(word.end_s, 2)}
            for word in hearing.words
        ]
    return body


def _srt(segments: Sequence[Segment]) -> str:
    return "".join(
        f"{number}\n{_clock(segment.start_s, ',')} --> {_clock(segment.end_s, ',')}\n{segment.text}\n\n"
        for number, segment in enumerate(segments, 1)
    )


def _vtt(segments: Sequence[Segment]) -> str:
    cues = "".join(
        f"{_clock(segment.start_s, '.')} --> {_clock(segment.end_s, '.')}\n{segment.text}\n\n"
        for segment in segments
    )
    return f"WEBVTT\n\n{cues}"


def _clock(at_s: float, mark: str) -> str:
    milliseconds = round(at_s * 1000)
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{mark}{rest:03}"
