"""Text prompts from tables (.csv, .xlsx, .jsonl), text files, and JSON Lines on standard input.

Rows are streamed. A row that cannot be used becomes a source with a `refusal`, so that it shows in the
manifest with its reason and all the others still run.

A row comes as text, from CSV, Excel workbooks and JSON Lines alike: its number as a person counts it, its cells by
column, and what is wrong with it; empty when nothing is.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import re
import zipfile
import zlib
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import IO, TYPE_CHECKING, Any, TypeAlias, get_args

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from audiobatch.config.jobspec import AudioFormat
from audiobatch.errors import ConfigError, shown
from audiobatch.inputs.table_bounds import (
    MOST_COLUMNS,
    check_csv,
    check_row,
    check_workbook,
    lines_within,
    too_large,
)
from audiobatch.model import MEANT_COLUMNS, RowSettings, Source, SourceKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

TABLE_ENDINGS = (".csv", ".xlsx", ".jsonl")
#: The longest prompt that is taken for one: longer text is a mistake (a wrong file), not a prompt.
MAX_PROMPT_CHARACTERS = 1_000_000
_FORMATS = get_args(AudioFormat)
_NAMEABLE = sorted(MEANT_COLUMNS - {"prompt", "filename"})
#: Ends the id of a row that asks for one that is taken. No row can ask for such an id: were it a plain number, as
#: of prompts that repeat, a later row could, and would find its id taken, and its result with the refused row.
_AGAIN = "#again"
_GIVEN_AGAIN = re.compile(rf"{_AGAIN}(-\d+)?$")
#: What 64 bits hold: the service takes no more, nor does the ledger.
_LARGEST = 2**63 - 1


class _RowForm(BaseModel):
    """The columns that mean something; every other column is carried through as the row's own."""

    model_config = ConfigDict(extra="ignore", str_strip_whitespace=True)

    voice: str | None = None
    format: AudioFormat | None = None
    system: str | None = None
    deployment: str | None = None
    filename: str | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    seed: int | None = Field(default=None, ge=-_LARGEST - 1, le=_LARGEST)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=_LARGEST)


@dataclass(slots=True)
class Ids:
    """Ids given out so far, so that no two inputs share one."""

    taken: set[str] = field(default_factory=set)

    def for_prompt(self, text: str) -> str:
        """`prompt-` and ten digits of the text's hash; `-2`, `-3` for repeats. Never a row number."""
        return self.unique("prompt-" + hashlib.sha256(text.encode()).hexdigest()[:10])

    def unique(self, wanted: str) -> str:
        """`wanted`, or the first of `wanted-2`, `wanted-3`, … that is free; taken from now on."""
        if wanted not in self.taken:  # nearly always
            self.taken.add(wanted)
            return wanted
        names = itertools.chain([wanted], (f"{wanted}-{number}" for number in itertools.count(2)))
        found = next(name for name in names if name not in self.taken)
        self.taken.add(found)
        return found


def text_source(
    text: str, *, ids: Ids, root: str, path: str, item_id: str | None = None, refusal: str = ""
) -> Source:
    """One prompt as a source; an empty one is refused."""
    text = text.strip()
    if not refusal and not text:
        refusal = "the prompt is empty"
    if not refusal and len(text) > MAX_PROMPT_CHARACTERS:
        refusal = f"the prompt has {len(text):,} characters; at most {MAX_PROMPT_CHARACTERS:,} are taken"
    return Source(
        item_id=ids.unique(item_id) if item_id else ids.for_prompt(text),
        kind=SourceKind.PROMPT,
        position=0,
        root=root,
        path=path,
        text=text,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        refusal=refusal,
    )


def read_text_file(path: Path) -> tuple[str, str]:
    """A prompt file's text and, when it cannot be used, why."""
    try:
        return path.read_text(encoding="utf-8-sig"), ""
    except UnicodeDecodeError:
        return "", "the file is not UTF-8 text"
    except OSError as failed:
        return "", f"the file cannot be read: {failed.strerror}"


def lines_of(path: Path, *, root: str, ids: Ids, name: str = "") -> Iterator[Source]:
    """Each line that is not blank, as a prompt of its own; `name`: of the file, where this is a copy of it."""
    text, refusal = read_text_file(path)
    if refusal:
        raise ConfigError(f"{shown(path)}: {refusal}")
    for line in text.split("\n"):  # reading made it of `\r\n` and `\r`; other separators are part of a text
        if line.strip():
            yield text_source(line, ids=ids, root=root, path=name or path.name)


@dataclass(slots=True, kw_only=True)
class Table:
    """One table's rows on their way to sources.

    Attributes:
        name: what the manifest calls it.
        root: the folder that it lies in; empty for standard input.
        needs_prompt: whether a `prompt` column must be there (no template stands in for it).
        fills_prompts: whether the job's prompts name columns, so that a row keeps all that they may name.
    """

    name: str
    root: str
    ids: Ids
    needs_prompt: bool
    fills_prompts: bool = False
    row_of: dict[str, int] = field(default_factory=dict)

    def from_file(self, path: Path) -> Iterator[Source]:
        """The sources of a .csv, .xlsx or .jsonl file.

        Raises:
            ConfigError: it cannot be read, or has no prompt column.
        """
        match path.suffix.lower():
            case ".csv":
                yield from self._sources(csv_rows(path))
            case ".xlsx":
                yield from self._sources(xlsx_rows(path))
            case _:
                with open_lines(path) as lines:
                    yield from self._sources(json_lines(lines_within(lines, path), str(path)))

    def from_stream(self, lines: Iterable[str | bytes]) -> Iterator[Source]:
        """The sources of JSON Lines on standard input."""
        yield from self._sources(json_lines(lines, "standard input"))

    def _sources(self, rows: Iterator[Row]) -> Iterator[Source]:
        checked = not self.needs_prompt
        for number, row, problem in rows:
            check_row(row, self.name)
            if not checked and not problem:
                if "prompt" not in row:
                    raise ConfigError(
                        f"{self.name}: no column 'prompt'; there are: {', '.join(row) or 'none'}. "
                        "Name one 'prompt', or give --prompt with {column} placeholders"
                    )
                checked = True
            yield self._source(row, number, problem)

    def _source(self, row: dict[str, str], number: int, refusal: str) -> Source:
        text = row.get("prompt", "").strip()
        wanted = row.get("id", "").strip()
        settings = RowSettings()
        try:
            form = _RowForm.model_validate({key: value for key, value in row.items() if value.strip()})
            settings = RowSettings(**form.model_dump())
        except ValidationError as failed:
            refusal = refusal or "; ".join(_bad_cell(error) for error in failed.errors(include_url=False))
        if not refusal and not text and self.needs_prompt:
            refusal = f"the prompt of row {number} is empty"
        identity = text or orjson.dumps(row, option=orjson.OPT_SORT_KEYS).decode()
        item_id = wanted
        if clash := self._clash(wanted, number):
            refusal = refusal or clash
            item_id += _AGAIN
        return Source(
            item_id=self.ids.unique(item_id) if item_id else self.ids.for_prompt(identity),
            kind=SourceKind.PROMPT,
            position=0,
            root=self.root,
            path=self.name,
            text=text,
            row={key: value for key, value in row.items() if key not in MEANT_COLUMNS} | self._nameable(row),
            settings=settings,
            sha256=hashlib.sha256(text.encode()).hexdigest(),
            refusal=refusal,
        )

    def _nameable(self, row: dict[str, str]) -> dict[str, str]:
        """The cells that mean something to us, where prompts may name them; text and file name they have anyway."""
        if not self.fills_prompts:
            return {}
        return {name: row[name].strip() for name in _NAMEABLE if name in row}

    def _clash(self, wanted: str, number: int) -> str:
        """Why a row cannot have the id it asks for; empty when it can, and then it has it."""
        if not wanted:
            return ""
        if _GIVEN_AGAIN.search(wanted):
            return f"the id {wanted!r} of row {number} ends as those of refused rows do; give it another"
        if wanted in self.ids.taken:
            where = f"row {self.row_of[wanted]}" if wanted in self.row_of else "an earlier input"
            return f"the id {wanted!r} of row {number} was already used by {where}"
        self.row_of[wanted] = number
        return ""


def _bad_cell(error: Any) -> str:
    column = error["loc"][0]
    if column == "format":
        return f"format {error['input']!r} is not one of {', '.join(_FORMATS)}"
    return f"{column} {error['input']!r}: {error['msg'].lower()}"


Row: TypeAlias = tuple[int, dict[str, str], str]
_DELIMITERS = ",;\t|"
#: As many digits as the shortest whole number that 64 bits cannot hold.
_LONG_NUMBER = re.compile(rb"\d{19}")


def _rows_within(rows: Iterable[tuple[object, ...]], path: Path) -> Iterator[tuple[object, ...]]:
    for values in rows:
        if len(values) > MOST_COLUMNS:
            raise too_large(path, f"a row has {len(values):,} columns, more than {MOST_COLUMNS:,}")
        yield values


def open_lines(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as failed:
        raise ConfigError(f"{shown(path)}: cannot be read ({failed.strerror})") from failed


def json_lines(lines: Iterable[str | bytes], where: str) -> Iterator[Row]:
    """Each JSON object as a row of text; a line that is none is a row with its problem."""
    for number, line in enumerate(lines, 1):
        text = line.encode() if isinstance(line, str) else line
        text = text.removeprefix(b"\xef\xbb\xbf").strip()
        if not text:
            continue
        try:
            value = _parsed(text)
        except orjson.JSONDecodeError as failed:
            beginning = text.decode(errors="backslashreplace")[:200]
            yield number, {"prompt": beginning}, f"line {number} of {where} is not JSON: {failed}"
            continue
        if not isinstance(value, dict):
            yield number, {"prompt": str(value)[:200]}, f"line {number} of {where} is not a JSON object"
            continue
        yield number, {str(key): _cell(entry) for key, entry in value.items()}, ""


def _parsed(text: bytes) -> Any:
    """What a line of JSON holds, whole numbers of any length digit by digit.

    Raises:
        orjson.JSONDecodeError: it is none.
    """
    value = orjson.loads(text)
    # orjson makes a float of what 64 bits cannot hold: an id would lose its last digits.
    return json.loads(text.decode()) if _LONG_NUMBER.search(text) else value


def _cell(value: object) -> str:
    """A cell as text: whole numbers without `.0`, nothing for an empty cell, JSON for what is nested."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return _as_json(value) if isinstance(value, (dict, list, bool)) else str(value)


def _as_json(value: object) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # a whole number that 64 bits cannot hold
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def csv_rows(path: Path) -> Iterator[Row]:
    """Each row under the header, cells as they are written; short rows are filled up with empty cells.

    Raises:
        ConfigError: it cannot be read, or a row has more fields than the header: which of them belong together
            nobody can tell.
    """
    import pandas as pd

    delimiter = ","
    try:
        delimiter = _delimiter(path)
        check_csv(path, delimiter)
        # The header is read as a row: a row may then have no more fields than it. Told of a header, pandas takes
        # the surplus of the first rows for an index, and all cells move.
        reader = pd.read_csv(
            path,
            header=None,
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
            sep=delimiter,
            chunksize=1000,
            skip_blank_lines=True,
        )
        with reader as chunks:
            rows = (values for chunk in chunks for values in chunk.itertuples(index=False, name=None))
            columns = _csv_columns(next(rows, ()))
            _refuse_doubles(path, columns)
            for number, values in enumerate(rows, 2):
                texts = (value if isinstance(value, str) else "" for value in values)
                yield number, dict(zip(columns, texts, strict=True)), ""
    except OSError as failed:
        raise ConfigError(f"{shown(path)}: cannot be read ({failed.strerror})") from failed
    except UnicodeDecodeError as failed:
        raise ConfigError(f"{shown(path)}: is not UTF-8; save it as 'CSV UTF-8'") from failed
    except pd.errors.EmptyDataError:
        raise ConfigError(f"{shown(path)}: the table is empty") from None
    except (pd.errors.ParserError, ValueError) as failed:
        raise ConfigError(
            f"{shown(path)}: not a table that can be read: {str(failed).strip()}. A field that holds "
            f'{delimiter!r}, a quote or a line break needs double quotes around it: "Hello, world"'
        ) from failed


def _delimiter(path: Path) -> str:
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = file.read(65_536)
    try:
        return csv.Sniffer().sniff(head.partition("\n")[0], _DELIMITERS).delimiter
    except csv.Error:
        return ","


def _csv_columns(header: tuple[str, ...]) -> list[str]:
    """The columns' names; one without a name is called after its place, so that its cells are not lost."""
    return [name.strip() or f"Unnamed: {place}" for place, name in enumerate(header)]


def _refuse_doubles(path: Path, header: list[str]) -> None:
    """Raises: ConfigError: two columns have one name, so that one would be taken for the other."""
    doubled = [name for name, times in Counter(header).items() if name and times > 1]
    if doubled:
        names = ", ".join(map(repr, doubled))
        raise ConfigError(
            f"{shown(path)}: more than one column is called {names}; give each a name of its own"
        )


def xlsx_rows(path: Path) -> Iterator[Row]:
    """Each row of the first sheet that holds anything, formulas with the value they had when it was saved.

    Raises:
        ConfigError: it cannot be read, or is damaged.
    """
    rows = _sheet_values(path)
    header = [_excel_cell(value).strip() for value in next(rows, ())]
    if not any(header):
        raise ConfigError(f"{shown(path)}: the first sheet is empty")
    _refuse_doubles(path, header)
    for number, values in enumerate(rows, 2):
        if any(value is not None for value in values):
            cells = zip_longest(header, values[: len(header)])  # a row ends with its last cell
            yield number, {name: _excel_cell(value) for name, value in cells if name}, ""


def _excel_cell(value: object) -> str:
    """A cell as text, with plain line breaks. What XML cannot carry stands as `_xHHHH_` in it, CR as `_x000D_`."""
    if not isinstance(value, str):
        return _cell(value)
    if "_x" in value:
        from openpyxl.utils.escape import unescape

        # A character beyond 16 bits is two escapes; half of one is no character.
        utf16 = unescape(value).encode("utf-16-le", "surrogatepass")
        value = str(utf16, "utf-16-le", "replace")
    return value.replace("\r\n", "\n")


#: What openpyxl lets through when a workbook's archive, the XML in it or what that says is damaged.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, RuntimeError),
    *(SyntaxError, ValueError, TypeError, AttributeError, LookupError),
)


def _sheet_values(path: Path) -> Iterator[tuple[object, ...]]:
    """The cells of the first sheet, row by row; both opening it and each row can show that it is damaged."""
    from openpyxl import load_workbook

    try:
        with path.open("rb") as file:
            check_workbook(file, path)
            with closing(load_workbook(file, read_only=True, data_only=True)) as book:
                for sheet in book.worksheets[:1]:
                    sheet.reset_dimensions()  # a stored size may be wrong: rows beyond it would be lost
                    yield from _rows_within(sheet.iter_rows(values_only=True), path)
    except OSError as failed:
        raise ConfigError(f"{shown(path)}: cannot be read ({failed.strerror or failed})") from failed
    except _DAMAGE as failed:
        raise ConfigError(
            f"{shown(path)}: not an Excel workbook that can be read: {str(failed) or type(failed).__name__}. It "
            "may be damaged or have a password: open it in Excel and save it anew as .xlsx"
        ) from failed
