"""Read the content of replies with tolerance: JSON, token counts, times, names, samples.

A reply that is paid for is not thrown away for half a character in its transcript, nor for a field of an odd kind:
such a field counts as unknown.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from pydantic import Field, TypeAdapter, ValidationError

from audiobatch.audio.encode import encode_reply
from audiobatch.errors import BadReply
from audiobatch.model import Usage

#: More than any call takes, and few enough for any database.
_MOST_TOKENS = 10**12
_MOST_DIGITS = 15
_MOST_SECONDS = 10.0**12
_SECONDS = TypeAdapter(Annotated[float, Field(ge=0, le=_MOST_SECONDS, allow_inf_nan=False)])


def parse_json(raw: bytes) -> tuple[Any, bool]:
    """Parse JSON; replace what a strict reader refuses but a person can still read.

    Bytes that are no UTF-8, and halves of surrogate pairs, become U+FFFD.

    Returns:
        The value, and whether it had to be repaired.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return orjson.loads(raw), False
    except orjson.JSONDecodeError:
        return _without_half_characters(json.loads(raw.decode("utf-8", errors="replace"))), True


def _without_half_characters(value: Any) -> Any:
    """Replace halves of surrogate pairs, which no encoding can write."""
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case list():
            return [_without_half_characters(item) for item in value]
        case dict():
            return {
                _without_half_characters(key): _without_half_characters(item) for key, item in value.items()
            }
        case _:
            return value


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageNames:
    """The names that one of the service's APIs has for its token counts."""

    input: str
    input_details: str
    output: str
    output_details: str


CHAT_NAMES = UsageNames(
    input="prompt_tokens",
    input_details="prompt_tokens_details",
    output="completion_tokens",
    output_details="completion_tokens_details",
)
#: Of Realtime sessions and transcriptions.
EVENT_NAMES = UsageNames(
    input="input_tokens",
    input_details="input_token_details",
    output="output_tokens",
    output_details="output_token_details",
)


def usage_of(
    counts: Any,
    names: UsageNames,
    *,
    sent_audio: bool = False,
    received_audio: bool = False,
    may_be_empty: bool = False,
) -> Usage | None:
    """Read token counts, audio and text apart. Only numbers in the known fields are counts.

    A call takes tokens and returns some, so that zeros are no counts either. Audio takes audio tokens, so that a
    count without any would price it as text.

    Args:
        counts: the reply's `usage`.
        names: of its fields.
        sent_audio: a recording went with the request.
        received_audio: sound came with the reply.
        may_be_empty: a reply without tokens is possible: of a recording in which nobody speaks.

    Returns:
        None where these are no counts: the call's cost is unknown.
    """
    if not isinstance(counts, dict):
        return None
    in_details, out_details = counts.get(names.input_details) or {}, counts.get(names.output_details) or {}
    if not isinstance(in_details, dict) or not isinstance(out_details, dict):
        return None
    sent, audio_in = token_count(counts.get(names.input)), token_count(in_details.get("audio_tokens", 0))
    received = token_count(counts.get(names.output))
    audio_out = token_count(out_details.get("audio_tokens", 0))
    cached = token_count(in_details.get("cached_tokens", 0))
    if sent is None or audio_in is None or received is None or audio_out is None or cached is None:
        return None
    if not sent or not (received or may_be_empty):
        return None
    if (sent_audio and not audio_in) or (received_audio and not audio_out):
        return None
    if audio_in > sent or audio_out > received or cached > sent:
        return None
    return Usage(
        input_text_tokens=sent - audio_in,
        input_audio_tokens=audio_in,
        cached_tokens=cached,
        output_text_tokens=received - audio_out,
        output_audio_tokens=audio_out,
    )


def token_count(value: Any) -> int | None:
    """Read a number of tokens; None where it is missing, no number, below 0, a fraction or too large."""
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value[:_MOST_DIGITS])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= _MOST_TOKENS and value == int(value) else None


def seconds_of(value: Any) -> float | None:
    """Read a time in seconds; None where it is none."""
    try:
        return None if value is None else _SECONDS.validate_python(value)
    except ValidationError:
        return None


def name_of(value: Any) -> str:
    """Read a name or an id, whatever its type; empty where there is none."""
    return str(value) if value else ""


def encode_samples(pcm: bytes, format: str) -> bytes:  # noqa: A002 - the service's own word
    """Encode the samples of a stream or a session; CPU work, see `encode_reply`.

    Raises:
        BadReply: they are no sound.
    """
    try:
        return encode_reply(pcm, format)
    except ValueError as error:
        raise BadReply(f"the reply's audio cannot be used: {error}") from error
