"""The messages between the emulator and its engines' processes: a JSON header and a binary payload, over
pipes.

    4 bytes  length of the header, big-endian
    4 bytes  length of the payload, big-endian
    header   a JSON object, UTF-8
    payload  audio, as the header says

A request is one message; so is its answer, before which any number of messages with the header
`{"alive": true}` may come. Nothing is pickled: an engine that went mad can send nonsense, but not code.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any, Final

LENGTHS: Final = struct.Struct(">II")
ALIVE: Final[Mapping[str, Any]] = {"alive": True}


def packed(header: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """Encode one message."""
    encoded = json.dumps(header).encode()
    return LENGTHS.pack(len(encoded), len(payload)) + encoded + payload


def header_of(encoded: bytes) -> dict[str, Any]:
    """Decode a message's header.

    Raises:
        ValueError: it is not a JSON object.
    """
    match json.loads(encoded):
        case dict() as header:
            return header
        case other:
            raise ValueError(f"the header of an engine's message is not an object, but {other!r}")
