"""The journal's file and its fields."""

import hashlib
import json
from pathlib import Path
from typing import Any

from audiobatch_emulator.journal import Journal, item_hash


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


FIELDS = [
    *("n", "at", "finished_at", "transport", "deployment", "item_hash", "attempt", "status", "fault"),
    *("billed", "delivered", "input_text_tokens", "input_audio_tokens", "output_text_tokens"),
    *("output_audio_tokens", "max_in_window_10s"),
]


def one(
    journal: Journal, *, deployment: str = "d", hashed: str | None = "h", retry_count: int = 0
) -> dict[str, Any]:
    record = journal.open(transport="chat")
    journal.identify(record, deployment=deployment, hashed=hashed, retry_count=retry_count)
    journal.answer(record, status=200, billed=True)
    journal.close(record, delivered=True)
    return journal.records()[-1]


def folded(path: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return list({record["n"]: record for record in records}.values())


def test_the_last_line_of_a_number_is_the_truth(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "journal.jsonl"
    journal = Journal(path)
    record = journal.open(transport="chat")
    journal.identify(record, deployment="d", hashed="h", retry_count=0)
    assert folded(path) == journal.records()
    assert not folded(path)[0]["billed"]
    journal.answer(record, status=200, billed=True)
    assert [(r["billed"], r["delivered"], r["finished_at"]) for r in folded(path)] == [(True, False, None)]
    journal.close(record, delivered=True)
    assert folded(path) == journal.records()
    assert list(journal.records()[0]) == FIELDS
    journal.close_file()


def test_a_journal_is_continued_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    before = Journal(path)
    one(before)
    one(before)
    before.close_file()
    with path.open("ab") as file:
        file.write(b'{"n": 3, "at": "20')  # the line that the kill cut
    after = Journal(path)
    assert [record["n"] for record in after.records()] == [1, 2]
    third = one(after)
    assert (third["n"], third["attempt"]) == (3, 2)
    lines = path.read_bytes().splitlines()
    assert sum(line.startswith(b'{"n":3,') for line in lines) == 3
    after.close_file()


def test_a_reset_empties_the_file_and_forgets_calls_under_way(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    under_way = journal.open(transport="chat")
    journal.identify(under_way, deployment="d", hashed="h", retry_count=0)
    journal.reset()
    one(journal)
    journal.close(under_way, delivered=True)
    assert [record["n"] for record in folded(path)] == [1]
    assert folded(path) == journal.records()
    assert journal.records()[0]["attempt"] == 0
    journal.close_file()


def test_attempts_are_told_by_the_sdk_or_by_the_body() -> None:
    journal = Journal()
    assert [one(journal)["attempt"], one(journal)["attempt"]] == [0, 1]
    assert one(journal, hashed="other", retry_count=3)["attempt"] == 3
    assert one(journal, hashed=None, retry_count=0)["attempt"] == 0


def test_the_fullest_ten_seconds_so_far_are_known() -> None:
    clock = Clock()
    journal = Journal(now=clock)
    seen = []
    for step in (0, 1, 8.9, 0.1, 30):
        clock.now += step
        seen.append(one(journal)["max_in_window_10s"])
    assert seen == [1, 2, 3, 3, 3]
    assert one(journal, deployment="other")["max_in_window_10s"] == 1
    assert journal.records()[0]["at"] == "2027-01-15T08:00:00.000Z"


def test_the_hash_is_of_the_messages_without_what_a_retry_changes() -> None:
    ask = {"role": "user", "content": "Why?"}
    by_id = [ask, {"role": "assistant", "audio": {"id": "audio_1"}}, ask]
    by_words = [ask, {"role": "assistant", "content": "Because."}, ask]
    assert item_hash(by_id) == item_hash(by_words)
    assert item_hash([ask]) != item_hash([{"role": "user", "content": "How?"}])
    canonical = json.dumps(
        [dict(reversed(ask.items()))], sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    assert item_hash([ask]) == hashlib.sha256(canonical.encode()).hexdigest()
