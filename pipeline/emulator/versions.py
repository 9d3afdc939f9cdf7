"""Azure's dated API versions.

Source: learn.microsoft.com, "API version lifecycle": `2025-01-01-preview`, `2024-10-21`.
"""

import re

_DATED = re.compile(r"20\d\d-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])(-preview)?")


def dated_version(value: str | None) -> str | None:
    """The version where it is one, else None."""
    return value if value is not None and _DATED.fullmatch(value) else None
