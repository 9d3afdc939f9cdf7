"""What a folder and the emulator's journal say, read with nothing of the product: sqlite3, hashlib, csv, json."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable
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


@dataclass(frozen=True)
class Failure:
    """One recorded failure, and the reply's body that was kept with it."""

    item_id: str
    error_type: str
    body: tuple[str, int, str] | None


@dataclass
class Seen:
    """A folder's ledger at one moment."""

    results: set[Result] = field(default_factory=set)
    earlier: set[Result] = field(default_factory=set)
    failures: list[Failure] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    open_calls: int = 0
    open_after_the_end: int = 0
    attempts: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)


def look(folder: Path) -> Seen:
    """Read the ledger in the folder; an empty one where there is none yet."""
    return look_at_file(folder / "ledger.db")


def look_at_file(ledger: Path) -> Seen:
    """Read a ledger that is a file."""
    if not ledger.exists():
        return Seen()
    connection = sqlite3.connect(ledger)
    try:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
        return _seen(lambda query: connection.execute(query).fetchall()) if "meta" in tables else Seen()
    finally:
        connection.close()


def look_at_schema(connection: Any, schema: str) -> Seen:
    """Read a ledger that is a schema of a PostgreSQL database."""
    query = "SELECT count(*) FROM information_schema.tables WHERE table_schema = %s AND table_name = 'meta'"
    if not connection.execute(query, [schema]).fetchone()[0]:
        return Seen()
    connection.execute(f'SET search_path TO "{schema}"')
    return _seen(lambda query: connection.execute(query).fetchall())


def _seen(ask: Callable[[str], list[Any]]) -> Seen:
    seen = Seen()
    columns = "item_id, turn, version, fingerprint, request_id, audio, transcript_file, status"
    for table, into in (("outcomes", seen.results), ("versions", seen.earlier)):
        for row in ask(f"SELECT {columns}, error_type, raw_reply FROM {table}"):
            if table == "outcomes":
                seen.statuses[row[7]] += 1
            if row[7] == "succeeded":
                files = tuple(tuple(json.loads(text)) for text in row[5:7] if text)
                item_id, turn, version, fingerprint, request_id = row[:5]
                into.add(Result(item_id, turn, version, fingerprint, request_id, files))
            elif row[7] == "failed":
                body = tuple(json.loads(row[9])) if row[9] else None
                seen.failures.append(Failure(row[0], row[8], body))
    for item_id, state in ask("SELECT item_id, state FROM attempts"):
        seen.attempts[item_id] += 1
        seen.open_calls += state == "open"
        seen.unknown[item_id] += state in ("open", "unknown")
    query = "SELECT count(*) FROM attempts JOIN runs USING (run_id) WHERE state = 'open' AND summary > ''"
    seen.open_after_the_end = ask(query)[0][0]
    return seen


def is_there(folder: Path, result: Result) -> bool:
    """Whether each of a result's files is in its place, or set aside, with the recorded bytes."""
    return all(
        _is(folder / path, size, sha256) or _is(folder / f"versions/v{result.version}" / path, size, sha256)
        for path, size, sha256 in result.files
    )


def is_kept(folder: Path, failure: Failure) -> bool:
    """Whether the body of a failed reply is in its place with the recorded bytes."""
    return failure.body is not None and _is(folder / failure.body[0], failure.body[1], failure.body[2])


def _is(path: Path, size_bytes: int, sha256: str) -> bool:
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return len(data) == size_bytes and hashlib.sha256(data).hexdigest() == sha256


def temporary_files(folder: Path) -> int:
    """Count the temporary files below a folder."""
    return sum(name.startswith(TEMPORARY) for _, _, names in os.walk(folder) for name in names)


def manifest_rows(folder: Path) -> list[dict[str, str]]:
    """Read the manifest's rows."""
    with (folder / "manifest.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def hash_of_prompt(text: str) -> str:
    """The journal's `item_hash` of a lone text prompt."""
    messages = [{"content": text, "role": "user"}]
    canonical = json.dumps(messages, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def by_item(journal: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group a journal by item."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in journal:
        if record["item_hash"]:
            found.setdefault(record["item_hash"], []).append(record)
    return found
