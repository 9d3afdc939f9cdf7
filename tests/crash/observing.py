"""What a folder and the emulator's journal say, read with nothing of the product: sqlite3, hashlib, csv, json."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TEMPORARY = ".audiobatch-tmp-"


@dataclass(frozen=True)
class Result:
    """One recorded success."""

    item_id: str
    turn: int
    version: int
    fingerprint: str
    request_id: str
    files: tuple[tuple[str, int, str], ...]


@dataclass
class Seen:
    """A folder's ledger at one moment."""

    results: set[Result] = field(default_factory=set)
    earlier: set[Result] = field(default_factory=set)
    statuses: Counter[str] = field(default_factory=Counter)
    open_calls: int = 0
    open_after_the_end: int = 0
    attempts: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)


def look(folder: Path) -> Seen:
    """Read the ledger; an empty one where there is none yet."""
    seen = Seen()
    if not (folder / "ledger.db").exists():
        return seen
    connection = sqlite3.connect(folder / "ledger.db")
    try:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
        if "meta" not in tables:
            return seen
        columns = "item_id, turn, version, fingerprint, request_id, audio, transcript_file, status"
        for table, into in (("outcomes", seen.results), ("versions", seen.earlier)):
            for row in connection.execute(f"SELECT {columns} FROM {table}"):
                if table == "outcomes":
                    seen.statuses[row[7]] += 1
                if row[7] == "succeeded":
                    files = tuple(tuple(json.loads(text)) for text in row[5:7] if text)
                    into.add(Result(*row[:5], files=files))
        for item_id, state in connection.execute("SELECT item_id, state FROM attempts"):
            seen.attempts[item_id] += 1
            seen.open_calls += state == "open"
            seen.unknown[item_id] += state in ("open", "unknown")
        query = "SELECT count(*) FROM attempts JOIN runs USING (run_id) WHERE state = 'open' AND summary > ''"
        seen.open_after_the_end = connection.execute(query).fetchone()[0]
    finally:
        connection.close()
    return seen


def is_there(folder: Path, result: Result) -> bool:
    """Whether each of a result's files is in its place, or set aside, with the recorded bytes."""
    return all(
        _is(folder / path, size, sha256) or _is(folder / f"versions/v{result.version}" / path, size, sha256)
        for path, size, sha256 in result.files
    )


def _is(path: Path, size_bytes: int, sha256: str) -> bool:
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return len(data) == size_bytes and hashlib.sha256(data).hexdigest() == sha256


def temporary_files(folder: Path) -> int:
    return sum(name.startswith(TEMPORARY) for _, _, names in os.walk(folder) for name in names)


def manifest_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def hash_of_prompt(text: str) -> str:
    """The journal's `item_hash` of a lone text prompt."""
    messages = [{"content": text, "role": "user"}]
    canonical = json.dumps(messages, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def by_item(journal: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for record in journal:
        if record["item_hash"]:
            found.setdefault(record["item_hash"], []).append(record)
    return found
