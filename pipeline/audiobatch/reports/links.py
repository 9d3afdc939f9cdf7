"""Make relative links to the files of a job, for pages and workbooks.

A path in the manifest is POSIX and relative to the output folder. A link made from it works wherever the folder is
moved, copied or unzipped to.
"""

from __future__ import annotations

import os
import posixpath
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import quote
from urllib.request import url2pathname

from audiobatch.address import parse_location

if TYPE_CHECKING:
    from audiobatch.address import Location

#: Excel refuses longer targets.
#: Source: https://support.microsoft.com/office/excel-specifications-and-limits-1672b34d (2025-11-20).
EXCEL_TARGET_LIMIT = 2_079

#: Keys of a row beside the manifest's columns: the relative path from the output to the recording, empty where
#: there is none; and, for an output in a store, a stamp that changes with the reply's audio.
INPUT_LINK = "input_link"
AUDIO_STAMP = "audio_stamp"

_FILE_URL = "file:///"
_AUDIO_SUFFIXES = frozenset(
    ".aac .aif .aiff .flac .m4a .mp3 .mp4 .mpeg .mpga .oga .ogg .opus .wav .webm .wma .amr".split()  # noqa: SIM905
)
# What Excel itself escapes in the target of a link to a file; letters of any alphabet stay.
_EXCEL_ESCAPES = {ord(character): f"%{ord(character):02X}" for character in '%"<>[]^`{} #?\\|'}


def link_from(folder: Path, path: Path) -> str:
    """Return the relative POSIX path from a folder to a file; a file URL where they are on different drives."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return path.as_uri()


def link_to_input(output: Location, root: str, path: str) -> str:
    """Return the relative path from an output to a recording; empty between a store and a disk."""
    source = parse_location(root)
    if isinstance(output, Path):
        return link_from(output, source / path) if isinstance(source, Path) else ""
    if isinstance(source, Path) or source.protocol != output.protocol:
        return ""
    return posixpath.relpath(f"/{source.path}/{path}", f"/{output.path}")


def href(path: object) -> str:
    """Return a path as a relative URL for an attribute of a page; empty where it is not a path.

    The result never names a scheme or a host: `javascript:` and `//host` are treated as file names.
    """
    text = str(path) if isinstance(path, str) else ""
    if not text or "\x00" in text:
        return ""
    if text.startswith(_FILE_URL):
        return text
    try:
        quoted = quote(text.encode("utf-8", "surrogateescape"), safe="/~")
    except UnicodeEncodeError:  # half of a pair: no file system gave us this
        return ""
    if quoted.startswith("//"):
        return ""
    return quoted if quoted.startswith(("/", "./", "../")) else f"./{quoted}"


def excel_target(path: object) -> str:
    """Return a path as the target of an Excel hyperlink; empty where Excel could not follow it."""
    text = str(path) if isinstance(path, str) else ""
    if not text or text.startswith("/") or not text.isprintable():
        return ""
    if text.startswith(_FILE_URL):
        return text if len(text) <= EXCEL_TARGET_LIMIT else ""
    target = text.translate(_EXCEL_ESCAPES)
    first = target.split("/", 1)[0]
    if ":" in first:  # would be read as a scheme or a drive
        target = f"./{target}"
    return target if len(target) <= EXCEL_TARGET_LIMIT else ""


def file_at(folder: Path, link: str) -> Path:
    """Return the file that a link of a page in `folder` points to."""
    return Path(url2pathname(link.removeprefix("file://"))) if link.startswith(_FILE_URL) else folder / link


def is_audio_path(path: object) -> bool:
    """Whether a path has the suffix of an audio file."""
    return isinstance(path, str) and PurePosixPath(path).suffix.lower() in _AUDIO_SUFFIXES
