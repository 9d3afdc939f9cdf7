"""Reading a transcription request: a form with a file, or the service's refusal of it.

Source: the reference "Create transcription" and `openai` 3.51.0, `types/audio/transcription_create_params.py`; for
the texts github.com/B4PT0R/streamlit-mic-recorder/issues/10 (formats), github.com/chidiwilliams/buzz/issues/381
(413), github.com/Thinline-Dynamic-Solutions/ThinLineRadio/issues/114 (response format), and
github.com/murtaza-nasir/speakr/issues/168 (1400 s). November 2026.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from aiohttp import web

from audiobatch_emulator.checks import missing
from audiobatch_emulator.config import WHISPER_MODELS
from audiobatch_emulator.request_errors import invalid, invalid_value
from audiobatch_emulator.service_errors import Refusal

#: 25 MB, of the whole body.
MOST_BODY_BYTES = 26_214_400
#: The GPT models' longest recording; Whisper has no such limit.
LONGEST_S = 1400.0
FILE_ENDINGS = ("flac", "m4a", "mp3", "mp4", "mpeg", "mpga", "oga", "ogg", "wav", "webm")
RESPONSE_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
_ONLY_WHISPER = ("srt", "verbose_json", "vtt")
_KNOWN = frozenset(
    {
        *("file", "model", "language", "prompt", "response_format", "temperature", "stream"),
        *("timestamp_granularities[]", "include[]", "chunking_strategy", "languages[]", "keywords[]"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptionRequest:
    """A request that is right in itself."""

    audio: bytes
    response_format: str
    words: bool
    segments: bool
    temperature: float
    prompt: str


def read_transcription(
    form: Mapping[str, object], granularities: list[str], model: str
) -> TranscriptionRequest:
    """Reads and checks the request.

    Args:
        form: fields by name, the file among them.
        granularities: of times, in a field of its own each.
        model: behind the deployment that is asked.

    Raises:
        Refusal: 400, as the service would.
    """
    for name in form:
        if name not in _KNOWN:
            raise invalid(f"Unknown parameter: '{name}'.", name, "unknown_parameter")
    file = form.get("file")
    if not isinstance(file, web.FileField):
        raise missing("file")
    response_format = _response_format(form.get("response_format"), model)
    for granularity in granularities:
        if granularity not in ("word", "segment"):
            raise invalid_value(granularity, ("word", "segment"), "timestamp_granularities[0]")
    if granularities and response_format != "verbose_json":
        raise invalid(
            "Timestamp granularities are only supported with response_format 'verbose_json'.",
            "timestamp_granularities",
            None,
        )
    if str(form.get("stream", "")).lower() in ("true", "1") and model not in WHISPER_MODELS:
        raise invalid("The emulator does not stream transcripts: leave out 'stream'.", "stream", None)
    audio = file.file.read()
    if PurePosixPath(file.filename).suffix.lower().removeprefix(".") not in FILE_ENDINGS:
        raise wrong_file()
    return TranscriptionRequest(
        audio=audio,
        response_format=response_format,
        words="word" in granularities,
        segments="segment" in granularities or not granularities,
        temperature=_temperature(form.get("temperature")),
        prompt=str(form.get("prompt") or ""),
    )


def wrong_file() -> Refusal:
    """Builds a 400: the file's name does not end as a recording's does, or it is none."""
    return invalid(f"Invalid file format. Supported formats: {list(FILE_ENDINGS)}", None, None)


def too_large(size_bytes: int) -> Refusal:
    """Builds a 413: more than 25 MB."""
    return Refusal(
        status=413,
        type="server_error",
        message=f"Maximum content size limit ({MOST_BODY_BYTES}) exceeded ({size_bytes} bytes read)",
    )


def too_long(duration_s: float) -> Refusal:
    """Builds a 400: longer than the GPT models take."""
    return invalid(
        f"audio duration {duration_s} seconds is longer than {LONGEST_S:.0f} seconds which is the maximum for this "
        "model",
        None,
        "invalid_value",
    )


def _response_format(value: object, model: str) -> str:
    wanted = "json" if value is None else str(value)
    if wanted not in RESPONSE_FORMATS:
        raise invalid_value(wanted, RESPONSE_FORMATS, "response_format")
    if wanted in _ONLY_WHISPER and model not in WHISPER_MODELS:
        raise invalid(
            f"response_format '{wanted}' is not compatible with model '{model}'. Use 'json' or 'text' instead.",
            "response_format",
            "unsupported_value",
        )
    return wanted


def _temperature(value: object) -> float:
    if value is None:
        return 0.0
    with contextlib.suppress(ValueError):
        if 0 <= (temperature := float(str(value))) <= 1:
            return temperature
    raise invalid("Invalid 'temperature': expected a number from 0 to 1.", "temperature", "invalid_value")
