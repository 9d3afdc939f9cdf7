"""Checks of single values in a session's settings, and what the service says of wrong ones.

Source: the Realtime reference (`RealtimeSessionCreateRequest`). November 2026.
"""

from collections.abc import Callable
from typing import Any

from audiobatch_emulator.chat_audio import VOICES
from audiobatch_emulator.checks import integer, object_, wrong_type
from audiobatch_emulator.realtime_audio import FORMATS, PCM
from audiobatch_emulator.request_errors import invalid, invalid_value

MOST_OUTPUT_TOKENS = 4096
Check = Callable[[Any, str], None]


def object_or_null(value: object, param: str) -> None:
    """Checks for an object, or null to turn something off."""
    if value is not None:
        object_(value, param)


def anything(_value: object, _param: str) -> None:
    """Accepts anything; it is stored and shown, without any effect here."""


def one_of(*allowed: str) -> Check:
    """Returns a check for a value of a list."""

    def check(value: object, param: str) -> None:
        if value not in allowed:
            raise invalid_value(value, allowed, param)

    return check


def check_modalities(value: object, param: str) -> None:
    """Checks `output_modalities`: text or audio, not both."""
    if value not in (["text"], ["audio"]):
        if not isinstance(value, list):
            raise wrong_type(param, "an array of strings", value)
        raise invalid(
            f"Invalid modalities: {value}. Supported combinations are: ['text'] and ['audio'].",
            param,
            "invalid_value",
        )


def check_format(value: object, param: str) -> None:
    """Checks for one of the three formats; pcm only at 24 kHz."""
    object_(value, param)
    assert isinstance(value, dict)
    one_of(*FORMATS)(value.get("type"), f"{param}.type")
    if value["type"] == PCM.type and value.get("rate", PCM.rate_hz) != PCM.rate_hz:
        raise invalid(
            f"Invalid '{param}.rate': audio/pcm is supported at 24000 only.",
            f"{param}.rate",
            "invalid_value",
        )


def check_voice(value: object, param: str) -> None:
    """Checks for a voice's name, or a custom voice by its id."""
    if isinstance(value, dict) and str(value.get("id", "")).startswith("voice_"):
        return
    if not isinstance(value, str):
        raise wrong_type(param, "a string", value)
    one_of(*VOICES)(value.lower(), param)


def check_max_tokens(value: object, param: str) -> None:
    """Checks for 1 to 4096, or `inf`."""
    if value != "inf":
        integer(1, MOST_OUTPUT_TOKENS)(value, param)


def no_tools(value: object, param: str) -> None:
    """Refuses tools: there are none in the emulator."""
    if value not in ([], None):
        raise invalid("The emulator has no tools.", param, "unsupported_value")
