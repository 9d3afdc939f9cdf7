"""What no message holds: this run's credentials, and characters that a terminal obeys.

A service may repeat the key that it refuses, or any bytes, in its error; messages go to the terminal, the manifest,
the log and Prefect's pages.
"""

from __future__ import annotations

import re

#: Control characters but line feed and tab: escape sequences begin with one.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
HIDDEN = "…"

#: Shorter ones are no secrets (`none`, `test`), and would be found in half of all words.
_LEAST_LENGTH = 8

_secrets: set[str] = set()


def keep_secret(secret: str) -> None:
    """Let no message hold this credential from now on."""
    if len(secret) >= _LEAST_LENGTH:
        _secrets.add(secret)


def redacted(text: str) -> str:
    """The text with every credential as `…`, and without control characters."""
    for secret in _secrets:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return _CONTROLS.sub("", text)
