"""Text that survives a spreadsheet, and a spreadsheet that survives the text.

Two dangers meet in a cell. A text that begins like a formula is run by the program that opens it. And a
control character, or half of a surrogate pair, makes a file that some readers refuse. Both are removed by
rules that can be undone exactly:

    what the text has                             what the CSV cell has
    ------------------------------------------    -----------------------------------------------
    `= + - @` first, or tab, CR, LF, also after   one `'` before it
    spaces, quotes or `'` (and full-width forms)
    a control character but tab, CR, LF           `_x001B_`, its UTF-16 code as OOXML writes it
    a lone surrogate, U+FFFE, U+FFFF              `_xD800_`, the same
    literally `_x001B_`                           `_x005F_x001B_`, the same

`unprotect(protect(text)) == text` for every string that Python can hold, and text without these is unchanged:
an apostrophe before an ordinary word is just an apostrophe.
"""

from __future__ import annotations

import re

#: A cell of an XLSX file holds this many UTF-16 units.
#: Source: https://support.microsoft.com/office/excel-specifications-and-limits-1672b34d (2025-11-20).
CELL_LIMIT_UTF16 = 32_767

_CONTROL = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
_ESCAPED = re.compile(rf"[{_CONTROL}\ud800-\udfff\ufffe\uffff]|_(?=x[0-9A-Fa-f]{{4}}_)")
_ESCAPE = re.compile(r"_x([0-9A-Fa-f]{4})_")
# What a program may skip before it looks for a formula: spaces, quotes, and what has no width.
_SKIPPED = r"\s'\"`´‘’“”„«»\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff"
_FORMULA = re.compile(rf"[{_SKIPPED}]*?[=+\-@\t\r\n\u2212\ufe62\ufe63\ufe66\ufe6b＝＋－＠]")
_SAFE_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


def is_formula_like(text: str) -> bool:
    """Whether some spreadsheet might evaluate a cell with this text.

    Putting `'` before a text never changes the answer: that is what makes `protect` reversible.
    """
    return _FORMULA.match(text) is not None


def protect(text: str) -> str:
    """The text as a CSV cell that no spreadsheet evaluates and every reader accepts."""
    if not text.isprintable() or "_x" in text:
        text = escape_controls(text)
    if text and text[0] not in _SAFE_FIRST and is_formula_like(text):
        return "'" + text
    return text


def unprotect(text: str) -> str:
    """What was given to `protect`; text that it would have left alone comes back unchanged."""
    if text.startswith("'") and is_formula_like(text[1:]):
        text = text[1:]
    return unescape_controls(text) if "_x" in text else text


def escape_controls(text: str) -> str:
    """The text with every character that a file of text should not carry as `_xHHHH_`."""
    return _ESCAPED.sub(lambda found: f"_x{ord(found[0]):04X}_", text)


def unescape_controls(text: str) -> str:
    """The reverse of `escape_controls`."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)


def cut(text: str, pointer: str = "", *, limit_utf16: int = CELL_LIMIT_UTF16) -> tuple[str, bool]:
    """The text as it fits in one XLSX cell, and whether it had to be cut.

    A cut text ends with a marker that gives its full length and, where there is a file that holds the whole,
    that file's path (`pointer`). Characters outside the BMP count twice and are never halved.
    """
    units = len(text)
    if units * 2 > limit_utf16:
        units += sum(character > "\uffff" for character in text)
    if units <= limit_utf16:
        return text, False
    where = f", whole in {pointer}" if pointer and len(pointer) < limit_utf16 // 4 else ""
    marker = f" … [cut: {len(text)} characters{where}]"
    room = limit_utf16 - utf16_length(marker)
    kept = text.encode("utf-16-le", "surrogatepass")[: room * 2]
    if 0xD8 <= kept[-1] <= 0xDB:  # the first half of a pair whose second half did not fit
        kept = kept[:-2]
    return kept.decode("utf-16-le", "surrogatepass") + marker, True


def utf16_length(text: str) -> int:
    """How Excel counts characters."""
    return len(text) + sum(character > "\uffff" for character in text)
