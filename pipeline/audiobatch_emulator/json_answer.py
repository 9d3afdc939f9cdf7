"""A JSON answer, where a request asks for one in words: `- "topic" (a string): what the call is about`.

The stand-in knows no more of a recording than what it heard, so its values are plain: the first words for a
string, their number for a number, one of the choices where there are some. Their kinds are what was asked.
"""

import json
import re
import zlib

_ASKED = re.compile(r"\bone JSON object\b", re.IGNORECASE)
_FIELD = re.compile(r'^\s*[-*]\s*"(?P<name>[^"\n]+)"\s*\((?P<kind>[^\n]*)$', re.MULTILINE)
_CHOICES = re.compile(
    r'one of ((?:"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?)(?:, (?:"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?))*)'
)
_WORDS = 4


def asks_for_json(instruction: str) -> bool:
    """Returns whether an instruction asks for one JSON object and lists its fields."""
    return bool(_ASKED.search(instruction) and _FIELD.search(instruction))


def json_answer(instruction: str, heard: str) -> str:
    """Returns the object that was asked for, about what was heard; the same for the same words."""
    words = heard.split()
    return json.dumps(
        {match["name"]: _value(match["kind"], words) for match in _FIELD.finditer(instruction)},
        ensure_ascii=False,
    )


def _value(kind: str, words: list[str]) -> object:
    if choices := _CHOICES.search(kind):
        values = json.loads(f"[{choices[1]}]")
        chosen = values[zlib.crc32(" ".join(words).encode()) % len(values)]
        return [chosen] if kind.startswith("a list") else chosen
    if kind.startswith(("an integer", "a number")):
        return len(words)
    if kind.startswith("true or false"):
        return bool(words)
    if kind.startswith("a list"):
        return words[:_WORDS]
    return " ".join(words[:_WORDS]) or "nothing"
