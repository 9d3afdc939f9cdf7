"""Fields of a reply, read with tolerance: one of an odd kind is not known, and is no reason to lose the reply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from pipeline.model import Usage

#: More than any call takes, and few enough for any database.
_MOST_TOKENS = 10**12
_MOST_SECONDS = 10.0**12
_COUNT = TypeAdapter(Annotated[int, Field(ge=0, le=_MOST_TOKENS)])
_SECONDS = TypeAdapter(Annotated[float, Field(ge=0, le=_MOST_SECONDS, allow_inf_nan=False)])


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageNames:
    """What one of the service's APIs calls its token counts."""

    taken: str
    taken_details: str
    given: str
    given_details: str


CHAT_NAMES = UsageNames(
    taken="prompt_tokens",
    taken_details="prompt_tokens_details",
    given="completion_tokens",
    given_details="completion_tokens_details",
)
#: Of Realtime sessions and transcriptions.
EVENT_NAMES = UsageNames(
    taken="input_tokens",
    taken_details="input_token_details",
    given="output_tokens",
    given_details="output_token_details",
)


def usage_of(found: Any, names: UsageNames) -> Usage | None:
    """Token counts; audio and text apart. Where details are missing everything counts as text.

    Returns:
        None where there are no counts, or one of them is no whole number.
    """
    if not isinstance(found, dict) or not found:
        return None
    into, out = found.get(names.taken_details) or {}, found.get(names.given_details) or {}
    if not isinstance(into, dict) or not isinstance(out, dict):
        return None
    taken, audio_in = count_of(found.get(names.taken)), count_of(into.get("audio_tokens"))
    given, audio_out = count_of(found.get(names.given)), count_of(out.get("audio_tokens"))
    cached = count_of(into.get("cached_tokens"))
    if taken is None or audio_in is None or given is None or audio_out is None or cached is None:
        return None
    return Usage(
        input_text_tokens=max(0, taken - audio_in),
        input_audio_tokens=audio_in,
        cached_tokens=cached,
        output_text_tokens=max(0, given - audio_out),
        output_audio_tokens=audio_out,
    )


def count_of(value: Any) -> int | None:
    """A number of tokens: 0 where there is none, None where it is no whole number."""
    try:
        return _COUNT.validate_python(value or 0)
    except ValidationError:
        return None


def seconds_of(value: Any) -> float | None:
    """A time in seconds; None where it is none."""
    try:
        return None if value is None else _SECONDS.validate_python(value)
    except ValidationError:
        return None


def word_of(value: Any) -> str:
    """A name or an id, in words whatever it is; empty where there is none."""
    return str(value) if value else ""
