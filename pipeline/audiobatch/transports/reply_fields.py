"""Fields of a reply, read with tolerance: one of an odd kind is not known, and is no reason to lose the reply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from audiobatch.model import Usage

#: More than any call takes, and few enough for any database.
_MOST_TOKENS = 10**12
_MOST_DIGITS = 15
_MOST_SECONDS = 10.0**12
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


def usage_of(
    found: Any,
    names: UsageNames,
    *,
    heard: bool = False,
    spoken: bool = False,
    may_be_empty: bool = False,
) -> Usage | None:
    """Token counts; audio and text apart. Only numbers in the known fields are counts.

    A call takes tokens and gives some, so that zeros are no counts either; sound takes audio tokens, so that a
    count that tells none from text would price it as text.

    Args:
        found: the reply's `usage`.
        names: of its fields.
        heard: a recording went with the request.
        spoken: sound came with the reply.
        may_be_empty: a reply of no tokens is one: of a recording in which nobody speaks.

    Returns:
        None where these are no counts: what the call cost is not known.
    """
    if not isinstance(found, dict):
        return None
    into, out = found.get(names.taken_details) or {}, found.get(names.given_details) or {}
    if not isinstance(into, dict) or not isinstance(out, dict):
        return None
    taken, audio_in = count_of(found.get(names.taken)), count_of(into.get("audio_tokens", 0))
    given, audio_out = count_of(found.get(names.given)), count_of(out.get("audio_tokens", 0))
    cached = count_of(into.get("cached_tokens", 0))
    if taken is None or audio_in is None or given is None or audio_out is None or cached is None:
        return None
    if not taken or not (given or may_be_empty) or (heard and not audio_in) or (spoken and not audio_out):
        return None
    if audio_in > taken or audio_out > given or cached > taken:
        return None
    return Usage(
        input_text_tokens=taken - audio_in,
        input_audio_tokens=audio_in,
        cached_tokens=cached,
        output_text_tokens=given - audio_out,
        output_audio_tokens=audio_out,
    )


def count_of(value: Any) -> int | None:
    """A number of tokens; None where it is none: missing, a word, a truth value, below 0, a fraction, too large."""
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value[:_MOST_DIGITS])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= _MOST_TOKENS and value == int(value) else None


def seconds_of(value: Any) -> float | None:
    """A time in seconds; None where it is none."""
    try:
        return None if value is None else _SECONDS.validate_python(value)
    except ValidationError:
        return None


def word_of(value: Any) -> str:
    """A name or an id, in words whatever it is; empty where there is none."""
    return str(value) if value else ""
