"""Too few file descriptors: nothing that is paid for is lost, and nothing is bought twice."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from audiobatch import descriptors
from audiobatch.errors import ConfigError
from audiobatch.execution.job import Job
from audiobatch_emulator.process import EmulatorProcess
from tests.running import ROOT, azure, last_json, read_manifest, run_job

FEW = 170
ITEMS = 150

RUN = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({few}, {few}))
from audiobatch_flows.cli.main import main
main()
"""


def test_with_few_descriptors_fewer_calls_are_in_flight_and_every_reply_is_kept(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    emulator.put_faults({"do": {"latency_s": 1.0}})
    how = azure(emulator)
    table = tmp_path / "prompts.jsonl"
    table.write_text("".join(json.dumps({"id": f"i{n}", "prompt": f"Say {n}."}) + "\n" for n in range(ITEMS)))
    words: tuple[str, ...] = (
        "run",
        str(table),
        "--endpoint",
        how["endpoint"],
        "--deployment",
        how["deployment"],
        "--json",
    )
    words += ("--output", str(tmp_path / "out"), "--no-prefect", "--max-concurrency", str(ITEMS))
    ended = subprocess.run(
        [sys.executable, "-c", RUN.format(few=FEW), *words],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert last_json(ended.stdout)["succeeded"] == ITEMS
    assert len(emulator.settled_journal(ITEMS)) == ITEMS, "nothing was bought twice"
    assert {row["status"] for row in read_manifest(tmp_path / "out" / "manifest.csv")} == {"succeeded"}
    assert f"{FEW} files open" in ended.stderr


WAITS = """
import os, resource, sys, threading, time
from pathlib import Path
from audiobatch.storage.spool import Spool
from audiobatch.storage.local import LocalStorage

resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
base = Path(sys.argv[1])
output, spool = LocalStorage(base / "out"), Spool(base / "out", base=base / "state")
output.write("audio/a.wav", b"a")
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass

def free():
    time.sleep(0.5)
    for descriptor in held:
        os.close(descriptor)

began = time.monotonic()
threading.Thread(target=free).start()
if sys.argv[2] == "output":
    output.write_many([("audio/b.wav", b"b"), ("other/c.wav", b"c")])
else:
    spool.add("b", [("audio/b.wav", b"b")], {})
print(time.monotonic() - began)
"""


@pytest.mark.parametrize("where", ["output", "spool"])
def test_a_reply_that_finds_no_descriptor_waits_for_one(where: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WAITS, str(tmp_path), where],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout) >= 0.4
    if where == "output":
        assert (tmp_path / "out" / "other" / "c.wav").read_bytes() == b"c"
    else:
        assert len(list((tmp_path / "state").rglob("*.reply"))) == 1


def test_the_soft_limit_is_raised_to_what_the_system_allows() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[1]), before[1]))
        descriptors.raise_limit()
        assert descriptors.limit() == min(before[1], descriptors.MAX_LIMIT)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_calls_are_what_descriptors_leave_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "limit", lambda: 400)
    monkeypatch.setattr(descriptors, "open_count", lambda: 40)
    assert descriptors.calls_allowed(in_stores=False, streams=False) == 400 - 40 - descriptors.RESERVE
    assert descriptors.calls_allowed(in_stores=False, streams=True) == (400 - 40 - descriptors.RESERVE) // 2
    monkeypatch.setattr(descriptors, "limit", lambda: 140)
    with pytest.raises(ConfigError, match="ulimit -n"):
        descriptors.calls_allowed(in_stores=True, streams=False)
    monkeypatch.setattr(descriptors, "limit", lambda: None)
    assert descriptors.calls_allowed(in_stores=False, streams=False) is None


def test_reports_that_cannot_be_opened_are_trouble_that_is_told(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    """Not an internal error: the results are there, and the next run makes the views."""
    (tmp_path / "a.txt").write_text("Say one.")
    refused = []

    def watch(opened: Job) -> None:
        write = opened.views._write_others

        def without_descriptors(*arguments: Any) -> Any:
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            lowest = os.dup(0)
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
            try:
                return write(*arguments)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                refused.append(lowest)

        opened.views._write_others = without_descriptors  # type: ignore[assignment, method-assign]  # a stand-in

    how = {"inputs": [str(tmp_path / "a.txt")], "output": str(tmp_path / "out"), **azure(emulator)}
    summary = run_job(on_open=watch, **how)
    assert (summary.exit_code, summary.succeeded, bool(refused)) == (2, 1, True)
    assert "Too many open files" in summary.message
    again = run_job(**how)
    assert (again.exit_code, again.sent) == (0, 0)
    assert (tmp_path / "out" / "manifest.xlsx").exists()
