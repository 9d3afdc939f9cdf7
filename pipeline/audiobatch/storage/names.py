"""Where an item's files go: the item_id made safe for every file system.

A name is a function of the item_id alone, never of what else is in the folder, and two item_ids never get one
name. Both hold by one rule:

    an id that is portable and its own folded form      stays as it is          calls/anna.wav
    every other id                                      gets `~` and a hash     calls/Anna~k3j5h2m9q4.wav

Portable: no character, length or word that Linux, macOS or Windows refuses or treats specially. Folded: lower
case and composed (NFKC), because macOS and Windows take `Anna` and `anna`, or the two ways to write `é`, for
one file. `~` is itself not portable (Windows' short names use it), so no hashed name meets an unhashed one.

One pair the ending rule cannot tell apart: `x` and `x.wav` both become `x.wav`. Such ids, and a table's own
`filename`s, are refused before anything is sent: `claims` knows who came first.

`Claims` below know who has which output name. Names made from item_ids are apart by themselves, but for `x` and
`x.wav`; a table's `filename`s can be anything.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import PurePosixPath
from typing import Final, Literal
from unicodedata import category, normalize, ucd_3_2_0

from audiobatch.errors import InputError

Folder = Literal["audio", "transcripts", "replies", "parts"]
#: Endings of the files that are written here. No folder ends in one, so no file is where a folder must be.
OUTPUT_ENDINGS: Final = frozenset(
    {".wav", ".mp3", ".flac", ".opus", ".aac", ".m4a", ".ogg", ".pcm", ".pcm16"}
    | {".txt", ".srt", ".vtt", ".json", ".html", ".bin"}
)
#: Of bodies that are kept as they came, in `replies/`.
#: A body's; earlier versions kept pages as `.html`.
RAW_ENDINGS: Final = (".json", ".txt", ".bin", ".html")
#: Endings that inputs come with: `a.m4a` and `a.m4a.wav` would both be written to `a.m4a.wav`.
_INPUT_ENDINGS: Final = OUTPUT_ENDINGS | frozenset(
    {".m4b", ".mp4", ".mov", ".mkv", ".webm", ".oga", ".wma", ".amr", ".aif", ".aiff", ".au"}
    | {".3gp", ".caf", ".gsm", ".ulaw", ".alaw", ".raw", ".csv", ".xlsx", ".jsonl", ".md"}
)
#: Source: https://learn.microsoft.com/windows/win32/fileio/naming-a-file (2026-11): also with an ending.
_RESERVED: Final = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$", "clock$"}
    | {f"{port}{digit}" for port in ("com", "lpt") for digit in range(10)}
)
_FORBIDDEN: Final = frozenset('<>:"\\|?*~')
#: Drawn as nothing and ignored when some file systems compare names; the others like them are of class Cf.
_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_NUMBERED: Final = re.compile(r"\.(?:t|part)[0-9]+$", re.IGNORECASE)
_PLAIN: Final = re.compile(r"[a-z0-9_]+(?:[-/][a-z0-9_]+)*(?:\.[a-z0-9]+)?")
_HASH_CHARACTERS: Final = 10
#: Leaves room for `~` and the hash, `.t12`, `.part123` and two endings within 255 bytes.
_COMPONENT_BYTES: Final = 200
#: Windows allows 260 units for a whole path, the folder that the user chose included.
_STEM_UNITS: Final = 180


def output_stem(item_id: str) -> PurePosixPath:
    """The item's own name: a relative path, safe on Linux, macOS and Windows; different for different ids."""
    if _PLAIN.fullmatch(item_id) and len(item_id) < _STEM_UNITS and not _is_taken(item_id.split("/")):
        return PurePosixPath(item_id)
    parts = [_safe_component(part) for part in item_id.split("/") if part]
    if "/".join(parts) == item_id and _fits(parts) and _is_folded(item_id) and not _is_taken(parts):
        return PurePosixPath(item_id)
    digest = hashlib.sha256(item_id.encode("utf-8", "surrogatepass")).digest()
    mark = "~" + base64.b32encode(digest).decode("ascii").lower()[:_HASH_CHARACTERS]
    *folders, name = parts or ["_"]
    base, ending = _split_ending(name)
    base = _cut(base, _COMPONENT_BYTES - len(mark), _STEM_UNITS // 2 - len(mark))
    kept: list[str] = []
    room = _STEM_UNITS - _units(base) - len(mark) - len(ending)
    for folder in map(_safe_folder, folders):
        room -= _units(folder) + 1
        if room < 0:
            break
        kept.append(folder)
    return PurePosixPath(*kept, base + mark + ending)


def output_path(
    item_id: str,
    *,
    folder: Folder,
    ending: str,
    turn: int = 1,
    filename: str | None = None,
    part: int | None = None,
) -> str:
    """POSIX path of one output, relative to the output folder.

    Args:
        item_id: whose output it is.
        folder: the top folder for this kind of file.
        ending: of the format, for example `.wav`; added unless the name has it.
        turn: from the second on, `.t2` and so forth stands before the ending.
        filename: a prompt table's own choice of name; may name folders with `/`.
        part: of a reply in several parts, from 1: `.part1` stands before the ending.

    Raises:
        InputError: `filename` would not work on every system; the message says which name does.
        ValueError: the ending is not one of `OUTPUT_ENDINGS`, or a number is below 1.
    """
    if ending not in OUTPUT_ENDINGS:
        raise ValueError(f"not an ending of an output: {ending!r}")
    if turn < 1 or (part is not None and part < 1):
        raise ValueError(f"turns and parts count from 1, not {turn} and {part}")
    stem = stem_of(item_id, filename)
    name = stem.name
    if name[-len(ending) :].lower() == ending:
        name = name[: -len(ending)]
    if turn > 1:
        name += f".t{turn}"
    if part is not None:
        name += f".part{part}"
    return str(PurePosixPath(folder) / stem.parent / (name + ending))


def part_id(item_id: str, part: int) -> str:
    """What stands in the item_id's place for a call that is one of several."""
    return f"{item_id}#part{part}"


def transcription_id(item_id: str, kind: str) -> str:
    """What stands in the item_id's place for a transcription of its input or of its speech (`PartKind`)."""
    return f"{item_id}#{kind}"


def stem_of(item_id: str, filename: str | None = None) -> PurePosixPath:
    """The item's own name, or the one that its table chose for it.

    Raises:
        InputError: `filename` would not work on every system; the message says which name does.
    """
    return output_stem(item_id) if filename is None else _chosen_stem(filename)


def collision_key(path: str) -> str:
    """Equal for two paths that some file system takes for the same file."""
    return normalize("NFKC", normalize("NFKC", path).upper().casefold())


def _chosen_stem(filename: str) -> PurePosixPath:
    chosen = normalize("NFC", filename.strip())
    parts = [_safe_folder(_safe_component(part)) for part in chosen.split("/")[:-1]]
    parts.append(_safe_component(chosen.rpartition("/")[2]))
    base, ending = _split_ending(parts[-1])
    if numbered := _NUMBERED.search(base):  # as a later turn's own name
        parts[-1] = f"{base[: numbered.start()]}_{numbered[0][1:]}{ending}"
    safe = "/".join(part for part in parts if part)
    if not safe:
        raise InputError("the column `filename` is empty")
    if not _fits(parts):
        raise InputError(f"the filename {_shown(chosen)} is too long: at most {_STEM_UNITS} characters")
    # `~` is forbidden in ids only to keep the hashed names apart; a person may choose it.
    if safe != chosen.replace("~", "_"):
        raise InputError(
            f"the filename {_shown(chosen)} does not work on every system, or is like those of later turns; "
            f"a name that does: {_shown(safe)}"
        )
    return PurePosixPath(chosen)


def _shown(name: str) -> str:
    return ascii(name) if not name.isprintable() else repr(name)


def _safe_component(raw: str) -> str:
    """One component with what is not portable replaced by `_`; never empty unless `raw` is."""
    # Python carries Unicode 3.2 beside its own version: one answer whatever Python runs, and HFS+'s rule.
    composed = ucd_3_2_0.normalize("NFC", raw)
    text = "".join(character if _is_portable(character) else "_" for character in composed)
    if text[:1] in {" ", ".", "-"}:
        text = "_" + text[1:]
    if text[-1:] in {" ", "."}:
        text = text[:-1] + "_"
    if normalize("NFKC", text.partition(".")[0]).casefold().rstrip() in _RESERVED:
        text = "_" + text
    return text


def _safe_folder(component: str) -> str:
    if _split_ending(normalize("NFKC", component))[1]:
        component += "_"
    return (
        component if _component_fits(component) else _cut(component, _COMPONENT_BYTES, _STEM_UNITS // 2) + "_"
    )


def _is_portable(character: str) -> bool:
    if " " <= character <= "\x7e":
        return character not in _FORBIDDEN
    kind = category(character)
    return kind == "Cn" or (kind[0] not in "CZ" and not _INVISIBLE.match(character))


def _is_folded(text: str) -> bool:
    """No other text is the same to a file system that ignores case, normalises, or compares in upper case."""
    # Unassigned in Unicode 3.2: its folding may differ between the versions of Python and of file systems.
    if any(ucd_3_2_0.category(character) == "Cn" for character in text):
        return False
    return text == normalize("NFKC", text.casefold()) == normalize("NFKC", text.upper().casefold())


def _is_taken(parts: list[str]) -> bool:
    """Another id's output could have this very name: by an ending, a turn's or part's number, or a folder."""
    *folders, name = parts
    base, _ = _split_ending(name)
    doubled = base != name and "." in base and base[base.rindex(".") :].lower() in _INPUT_ENDINGS
    reserved = any(part.partition(".")[0] in _RESERVED for part in parts)
    return doubled or reserved or bool(_NUMBERED.search(base)) or any(_split_ending(f)[1] for f in folders)


def _split_ending(name: str) -> tuple[str, str]:
    """(`anna`, `.wav`) of `anna.wav`; the ending is empty where it is not one of ours."""
    base, dot, ending = name.rpartition(".")
    return (base, dot + ending) if base and dot + ending.lower() in OUTPUT_ENDINGS else (name, "")


def _units(text: str) -> int:
    """Length as Windows and macOS count it, in the longer of the two normal forms."""
    return max(len(normalize(form, text).encode("utf-16-le", "replace")) // 2 for form in ("NFC", "NFD"))


def _component_fits(component: str) -> bool:
    return (
        len(component.encode("utf-8", "replace")) <= _COMPONENT_BYTES
        and _units(component) <= _COMPONENT_BYTES
    )


def _fits(parts: list[str]) -> bool:
    return all(map(_component_fits, parts)) and _units("/".join(parts)) <= _STEM_UNITS


def _cut(text: str, most_bytes: int, most_units: int) -> str:
    while text and (len(text.encode("utf-8", "replace")) > most_bytes or _units(text) > most_units):
        text = text[: -max(1, (len(text) - most_bytes) // 2)]
    return text or "_"


class Claims:
    """The names given out so far, first come, first served."""

    def __init__(self) -> None:
        self._holders: dict[str, str] = {}

    def claim(self, item_id: str, filename: str | None = None) -> str | None:
        """Takes the item's output name; None when it is now the item's, else the item_id that has it.

        A refused item takes nothing. An item may claim its own name again.

        Raises:
            InputError: `filename` would not work on every system.
        """
        stem = stem_of(item_id, filename)
        for key in _rivals(stem):
            if (holder := self._holders.get(key, item_id)) != item_id:
                return holder
        self._holders[collision_key(str(stem))] = item_id
        return None


def _rivals(stem: PurePosixPath) -> list[str]:
    """Every name that becomes the same file once an ending is added, this one first."""
    key = collision_key(str(stem))
    rivals = [key, *(key + ending for ending in OUTPUT_ENDINGS)]
    if stem.suffix.lower() in OUTPUT_ENDINGS:
        rivals.append(key.removesuffix(stem.suffix.lower()))
    return rivals
