"""JSON of somebody else's making: what a strict reader refuses and a person can still read, is read.

A reply that is paid for is not thrown away for half a character in its transcript. Bytes that are no UTF-8, and
halves of surrogate pairs, become U+FFFD; whoever keeps such a text says that it was repaired.
"""

from __future__ import annotations

import json
from typing import Any

import orjson


def loads(raw: bytes) -> tuple[Any, bool]:
    """The value, and whether it had to be repaired.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return orjson.loads(raw), False
    except orjson.JSONDecodeError:
        return _whole(json.loads(raw.decode("utf-8", errors="replace"))), True


def _whole(value: Any) -> Any:
    """The same without halves of surrogate pairs, which cannot be written down."""
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case list():
            return [_whole(one) for one in value]
        case dict():
            return {_whole(key): _whole(one) for key, one in value.items()}
        case _:
            return value
