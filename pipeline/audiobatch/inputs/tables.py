"""Read text prompts from tables (.csv, .xlsx, .jsonl), text files, and JSON Lines on standard input.

Rows are streamed. A row that cannot be used becomes a source with a `refusal`: the manifest shows it with its
reason, and the other rows still run.

CSV files, Excel workbooks and JSON Lines give the same `Row`: its number as a person counts it, its cells as text
by column, and a problem; empty where there is none.
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
#: Longer text is a mistake (a wrong file), not a prompt.
MAX_PROMPT_CHARACTERS = 1_000_000
_FORMATS = get_args(AudioFormat)
_NAMEABLE = sorted(MEANT_COLUMNS - {"prompt", "filename"})
#: Suffix of the id of a row whose own id is already used. No row may ask for an id that ends like this. With a
#: plain number, as for repeated prompts, a later row could ask for the same id and get the refused row's result.
_DUPLICATE = "#again"
_RESERVED_ID = re.compile(rf"{_DUPLICATE}(-\d+)?$")
#: What 64 bits hold: the service takes no more, nor does the ledger.
_LARGEST = 2**63 - 1


class _RowForm(BaseModel):
    """The columns that are settings of the item; every other column is the row's own data."""

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
class ItemIds:
    """Creates item ids, each different from all before."""

    used: set[str] = field(default_factory=set)

    def for_prompt(self, text: str) -> str:
        """Return `prompt-` and ten digits of the text's hash, with `-2`, `-3` for repeats; never a row number."""
        return self.unique("prompt-" + hashlib.sha256(text.encode()).hexdigest()[:10])

    def unique(self, wanted: str) -> str:
        """Return `wanted`, or the first of `wanted-2`, `wanted-3`, … that is unused; it is used from now on."""
        item_id = wanted
        if wanted in self.used:
            numbered = (f"{wanted}-{number}" for number in itertools.count(2))
            item_id = next(name for name in numbered if name not in self.used)
        self.used.add(item_id)
        return item_id


def text_source(
    text: str, *, ids: ItemIds, root: str, path: str, item_id: str | None = None, refusal: str = ""
) -> Source:
    """Return the source of a prompt; an empty or overlong one is refused."""
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
    """Return a prompt file's text, and a refusal where it cannot be used."""
    try:
        return path.read_text(encoding="utf-8-sig"), ""
    except UnicodeDecodeError:
        return "", "the file is not UTF-8 text"
    except OSError as failed:
        return "", f"the file cannot be read: {failed.strerror}"


def lines_of(path: Path, *, root: str, ids: ItemIds, name: str = "") -> Iterator[Source]:
    """Yield a source for each line that is not blank; `name` is that of the original where `path` is a copy."""
    text, refusal = read_text_file(path)
    if refusal:
        raise ConfigError(f"{shown(path)}: {refusal}")
    for line in text.split("\n"):  # reading replaced `\r\n` and `\r`; other separators belong to the text
        if line.strip():
            yield text_source(line, ids=ids, root=root, path=name or path.name)


@dataclass(slots=True, kw_only=True)
class PromptTable:
    """A table whose rows become sources.

    Attributes:
        name: of the table in the manifest.
        root: its folder; empty for standard input.
        needs_prompt: whether the table must have a `prompt` column: the job has no template instead.
        fills_prompts: whether the job's prompts name columns: a source then has all cells that they may name.
        row_of: the number of the row that has an id.
    """

    name: str
    root: str
    ids: ItemIds
    needs_prompt: bool
    fills_prompts: bool = False
    row_of: dict[str, int] = field(default_factory=dict)

    def from_file(self, path: Path) -> Iterator[Source]:
        """Yield the sources of a .csv, .xlsx or .jsonl file.

        Raises:
            ConfigError: the file cannot be read, or has no prompt column.
        """
        match path.suffix.lower():
            case ".csv":
                yield from self._sources(csv_rows(path))
            case ".xlsx":
                yield from self._sources(xlsx_rows(path))
            case _:
                with _open_lines(path) as lines:
                    yield from self._sources(json_lines(lines_within(lines, path), str(path)))

    def from_stream(self, lines: Iterable[str | bytes]) -> Iterator[Source]:
        """Yield the sources of JSON Lines on standard input."""
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
            item_id += _DUPLICATE
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
        """Return the cells of settings that prompts may name; `prompt` and `filename` are known anyway."""
        if not self.fills_prompts:
            return {}
        return {name: row[name].strip() for name in _NAMEABLE if name in row}

    def _clash(self, wanted: str, number: int) -> str:
        """Say why a row cannot have the id that it asks for; empty when it can."""
        if not wanted:
            return ""
        if _RESERVED_ID.search(wanted):
            return (
                f"the id {wanted!r} of row {number} ends in {_DUPLICATE}, which is reserved; choose another"
            )
        if wanted in self.ids.used:
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


def _open_lines(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as failed:
        raise ConfigError(f"{shown(path)}: cannot be read ({failed.strerror})") from failed


def json_lines(lines: Iterable[str | bytes], where: str) -> Iterator[Row]:
    """Yield each JSON object as a row of text; a line that is not one becomes a row with a problem."""
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
    """Parse a line of JSON, with all digits of long whole numbers.

    Raises:
        orjson.JSONDecodeError: it is not JSON.
    """
    value = orjson.loads(text)
    # orjson turns whole numbers beyond 64 bits into floats: an id would lose its last digits.
    return json.loads(text.decode()) if _LONG_NUMBER.search(text) else value


def _cell(value: object) -> str:
    """Return a cell as text: whole numbers without `.0`, "" for an empty cell, JSON for nested values."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return _as_json(value) if isinstance(value, (dict, list, bool)) else str(value)


def _as_json(value: object) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # a whole number beyond 64 bits
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def csv_rows(path: Path) -> Iterator[Row]:
    """Yield each row below the header, cells as they are written; short rows get empty cells.

    Raises:
        ConfigError: the file cannot be read, or a row has more fields than the header.
    """
    import pandas as pd

    delimiter = ","
    try:
        delimiter = _delimiter(path)
        check_csv(path, delimiter)
        # The header is read as a row, so that a longer row is an error. With `header=0`, pandas takes the surplus
        # fields of the first rows as an index, and all cells move.
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
            _check_unique(path, columns)
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
    """Return the columns' names; one without a name gets its number, so that its cells are not lost."""
    return [name.strip() or f"Unnamed: {index}" for index, name in enumerate(header)]


def _check_unique(path: Path, header: list[str]) -> None:
    """Check that no two columns have the same name.

    Raises:
        ConfigError: two columns have.
    """
    repeated = [name for name, times in Counter(header).items() if name and times > 1]
    if repeated:
        names = ", ".join(map(repr, repeated))
        raise ConfigError(
            f"{shown(path)}: more than one column is called {names}; give each a name of its own"
        )


def xlsx_rows(path: Path) -> Iterator[Row]:
    """Yield each row of the first sheet that is not empty; a formula has its value when the file was saved.

    Raises:
        ConfigError: the file cannot be read, or is damaged.
    """
    rows = _sheet_values(path)
    header = [_excel_cell(value).strip() for value in next(rows, ())]
    if not any(header):
        raise ConfigError(f"{shown(path)}: the first sheet is empty")
    _check_unique(path, header)
    for number, values in enumerate(rows, 2):
        if any(value is not None for value in values):
            cells = zip_longest(header, values[: len(header)])  # a row ends with its last cell
            yield number, {name: _excel_cell(value) for name, value in cells if name}, ""


def _excel_cell(value: object) -> str:
    """Return a cell as text, with the `_xHHHH_` escapes of OOXML undone and plain line breaks."""
    if not isinstance(value, str):
        return _cell(value)
    if "_x" in value:
        from openpyxl.utils.escape import unescape

        # A character beyond 16 bits is two escapes; half of one is no character.
        utf16 = unescape(value).encode("utf-16-le", "surrogatepass")
        value = str(utf16, "utf-16-le", "replace")
    return value.replace("\r\n", "\n")


#: Exceptions that openpyxl raises for a damaged workbook: its archive, its XML, or their content.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, RuntimeError),
    *(SyntaxError, ValueError, TypeError, AttributeError, LookupError),
)


def _sheet_values(path: Path) -> Iterator[tuple[object, ...]]:
    """Yield the cells of the first sheet row by row. Opening it and each row can show that it is damaged."""
    from openpyxl import load_workbook

    try:
        with path.open("rb") as file:
            check_workbook(file, path)
            with closing(load_workbook(file, read_only=True, data_only=True)) as book:
                for sheet in book.worksheets[:1]:
                    sheet.reset_dimensions()  # the stored size may be wrong: rows beyond it would be lost
                    yield from _rows_within(sheet.iter_rows(values_only=True), path)
    except OSError as failed:
        raise ConfigError(f"{shown(path)}: cannot be read ({failed.strerror or failed})") from failed
    except _DAMAGE as failed:
        raise ConfigError(
            f"{shown(path)}: not an Excel workbook that can be read: {str(failed) or type(failed).__name__}. It "
            "may be damaged or have a password: open it in Excel and save it anew as .xlsx"
        ) from failed
