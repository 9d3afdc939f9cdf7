"""A large job through a service in trouble: everything succeeds, and nothing is paid for that need not be.

200 items here; by hand in full: `AUDIOBATCH_TEST_ITEMS=5000 pytest tests/crash/test_many_items.py`.
"""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from audiobatch_emulator.process import EmulatorProcess
from tests.crash import observing
from tests.running import azure, run_job

ITEMS = int(os.environ.get("AUDIOBATCH_TEST_ITEMS", "200"))

#: About 30 % of all calls: refused, broken before, in and after the reply; each passes when it is made again.
NOT_BILLED = [
    {"when": {"share": 0.03, "attempt_below": 3}, "do": {"status": 429, "headers": {"retry-after-ms": "20"}}},
    {"when": {"share": 0.07, "attempt_below": 3}, "do": {"status": 503, "headers": {"retry-after-ms": "20"}}},
    {"when": {"share": 0.06, "attempt_below": 3}, "do": {"status": 500, "headers": {"retry-after-ms": "20"}}},
    {"when": {"share": 0.03, "attempt_below": 3}, "do": {"status": 529, "headers": {"retry-after-ms": "20"}}},
    {"when": {"share": 0.04, "attempt_below": 1}, "do": {"reset": "before"}},
]
BILLED = [
    {"when": {"share": 0.05, "attempt_below": 1}, "do": {"reset": "in"}},
    # Whole, then reset: the next call on that connection breaks too, and never reaches the service.
    {"when": {"share": 0.03, "attempt_below": 1}, "do": {"reset": "after"}},
]
FINAL = {"when": {"text": "forbidden"}, "do": {"status": 400}}


@pytest.mark.timeout(900)
def test_all_succeed_no_last_word_is_asked_twice_and_paid_calls_are_those_the_faults_required(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    texts = {f"p{n}": f"Please say number {n}." for n in range(ITEMS)} | {
        f"no{n}": f"Say the forbidden number {n}." for n in range(ITEMS // 50)
    }
    table = tmp_path / "prompts.jsonl"
    table.write_text("".join(json.dumps({"id": name, "prompt": text}) + "\n" for name, text in texts.items()))
    emulator.put_faults(FINAL, *NOT_BILLED, *BILLED)
    settings = azure(
        emulator, inputs=(str(table),), output=str(tmp_path / "out"), max_concurrency=48, max_failures="100%"
    )
    summary = run_job(**settings)
    journal = emulator.settled_journal(ITEMS, timeout_s=60)
    assert (summary.succeeded, summary.failed, summary.unknown) == (ITEMS, ITEMS // 50, 0)
    assert summary.exit_code == 3

    by_item = observing.by_item(journal)
    for name, text in texts.items():
        records = by_item[observing.hash_of_prompt(text)]
        ends = [record["fault"] for record in records]
        if name.startswith("no"):
            assert ends == ["status 400"], "a terminal error was sent again"
            continue
        assert ends[-1] in (None, "reset after"), ends  # whole before it broke: a reply like any other
        assert all(ends[:-1]), "sent again though nothing was wrong"
        # One call is paid for; and those that broke off after the service had done its work.
        lost = sum(bool(record["billed"]) for record in records[:-1])
        assert lost == sum(fault in ("reset in", "reset after") for fault in ends[:-1])
        assert records[-1]["billed"]
        assert records[-1]["delivered"]
    faults = Counter(record["fault"] for record in journal if record["fault"])
    assert sum(faults.values()) > 0.2 * ITEMS
    seen = observing.look(tmp_path / "out")
    assert seen.open_calls == 0
    for name, text in texts.items():
        assert len(by_item[observing.hash_of_prompt(text)]) <= seen.attempts[name], "sent unannounced"
    print(f"{ITEMS} items, {len(journal)} calls, faults: {dict(faults)}")
