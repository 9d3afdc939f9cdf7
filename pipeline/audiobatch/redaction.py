"""What no message holds: this run's credentials, and characters that a terminal obeys.

A service may repeat the key that it refuses, or any bytes, in its error; messages go to the terminal, the manifest,
the log and Prefect's pages. What it sends is stored without the key too: replies, transcripts, request ids.
"""

from __future__ import annotations

import json
import re
from urllib.parse import quote

#: Control characters but line feed and tab: escape sequences begin with one.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
#: In a name also what begins a new line, or turns the direction of what follows.
_IN_NAMES = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
HIDDEN = "…"

#: Shorter ones are no secrets (`none`, `test`), and would be found in half of all words.
_LEAST_LENGTH = 8

#: As they are, and as JSON and addresses write them.
_secrets: set[str] = set()


def keep_secret(secret: str) -> None:
    """Let no message hold this credential from now on."""
    if len(secret) >= _LEAST_LENGTH:
        written = json.dumps(secret)[1:-1]
        _secrets.update({secret, written, written.replace("/", "\\/"), quote(secret, safe="")})


def redacted(text: str) -> str:
    """The text with every credential as `…`, and without control characters."""
    return _CONTROLS.sub("", _without_secrets(text))


def redacted_bytes(data: bytes) -> bytes:
    """A body with every credential as `…`; all else as it came."""
    for secret in _secrets:
        data = data.replace(secret.encode(), HIDDEN.encode())
    return data


def longest_secret_bytes() -> int:
    """Of the credentials that are to be found: as much of a body's end may be the beginning of one."""
    return max((len(secret.encode()) for secret in _secrets), default=0)


def shown(name: object) -> str:
    """A name or path as it is printed within a line: control characters escaped, newlines too, no credential."""
    return _IN_NAMES.sub(
        lambda found: found[0].encode("unicode_escape").decode("ascii"), _without_secrets(str(name))
    )


def _without_secrets(text: str) -> str:
    for secret in _secrets:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return text
