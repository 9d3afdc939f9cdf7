"""The service's checks of single values, and what it says of wrong ones.

Source: messages of the API as they appear in public reports; the ranges are the Chat Completions reference's.
"""

from collections.abc import Callable
from typing import Any

from audiobatch_emulator.request_errors import invalid
from audiobatch_emulator.service_errors import Refusal

MOST_METADATA = 16
LONGEST_METADATA_KEY = 64
LONGEST_METADATA_VALUE = 512


def kind_of(value: object) -> str:
    """Returns a JSON value's kind, in the service's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int):
        return "an integer"
    if isinstance(value, float):
        return "a decimal"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"


def missing(param: str) -> Refusal:
    """Builds a 400: a field that must be there is not."""
    return invalid(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")


def wrong_type(param: str, expected: str, value: object) -> Refusal:
    """Builds a 400: a value of another kind."""
    return invalid(
        f"Invalid type for '{param}': expected {expected}, but got {kind_of(value)} instead.",
        param,
        "invalid_type",
    )


def _within(param: str, value: float, low: float, high: float, kind: str) -> None:
    for wrong, side, sign, bound in (
        (value < low, "below minimum", ">=", low),
        (value > high, "above maximum", "<=", high),
    ):
        if wrong:
            raise invalid(
                f"Invalid '{param}': {kind} {side} value. Expected a value {sign} {bound}, but got {value} "
                "instead.",
                param,
                f"{kind}_{side.split()[0]}_{side.split()[1][:3]}_value",
            )


def number(low: float, high: float) -> Callable[[Any, str], None]:
    """Returns a check for a number in a range."""

    def check(value: object, param: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(param, "a decimal", value)
        _within(param, value, low, high, "decimal")

    return check


def integer(low: int, high: int) -> Callable[[Any, str], None]:
    """Returns a check for a whole number in a range."""

    def check(value: object, param: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(param, "an integer", value)
        _within(param, value, low, high, "integer")

    return check


def text(value: object, param: str) -> None:
    """Returns a check for a string."""
    if not isinstance(value, str):
        raise wrong_type(param, "a string", value)


def boolean(value: object, param: str) -> None:
    """Returns a check for true or false."""
    if not isinstance(value, bool):
        raise wrong_type(param, "a boolean", value)


def object_(value: object, param: str) -> None:
    """Returns a check for an object."""
    if not isinstance(value, dict):
        raise wrong_type(param, "an object", value)


def check_metadata(value: Any, param: str) -> None:
    """Checks for at most 16 pairs, keys to 64 and values to 512 characters."""
    object_(value, param)
    if len(value) > MOST_METADATA:
        raise invalid(
            f"Invalid '{param}': too many properties. Expected an object with at most {MOST_METADATA} "
            f"properties, but got an object with {len(value)} properties instead.",
            param,
            "object_above_max_properties",
        )
    for key, item in value.items():
        if len(key) > LONGEST_METADATA_KEY:
            raise _too_long(param, key, LONGEST_METADATA_KEY)
        text(item, f"{param}.{key}")
        if len(item) > LONGEST_METADATA_VALUE:
            raise _too_long(f"{param}.{key}", item, LONGEST_METADATA_VALUE)


def _too_long(param: str, value: str, longest: int) -> Refusal:
    return invalid(
        f"Invalid '{param}': string too long. Expected a string with maximum length {longest}, but got a string "
        f"with length {len(value)} instead.",
        param,
        "string_above_max_length",
    )
