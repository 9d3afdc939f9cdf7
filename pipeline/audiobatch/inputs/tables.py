"""Text prompts from tables (.csv, .xlsx, .jsonl), text files, and JSON Lines on standard input.

Rows are streamed. A row that cannot be used becomes a source with a `refusal`, so that it shows in the
manifest with its reason and all the others still run.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from audiobatch.config.jobspec import AudioFormat
from audiobatch.errors import ConfigError
from audiobatch.inputs.table_bounds import check_row, lines_within
from audiobatch.inputs.table_rows import csv_rows, json_lines, open_lines, xlsx_rows
from audiobatch.model import MEANT_COLUMNS, RowSettings, Source, SourceKind
from audiobatch.redaction import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from audiobatch.inputs.table_rows import Row

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
