"""Too few file descriptors: nothing that is paid for is lost, and nothing is bought twice."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest
from running import ROOT, azure, last_json, read_manifest

from pipeline import descriptors
from pipeline.errors import ConfigError

FEW = 170
ITEMS = 150

RUN = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({few}, {few}))
from flows.cli import main
main()
"""


def test_with_few_descriptors_fewer_calls_are_in_flight_and_every_reply_is_kept(emulator, tmp_path):
    emulator.put_faults({"do": {"latency_s": 1.0}})
    how = azure(emulator)
    table = tmp_path / "prompts.jsonl"
    table.write_text("".join(json.dumps({"id": f"i{n}", "prompt": f"Say {n}."}) + "\n" for n in range(ITEMS)))
    words = ("run", str(table), "--endpoint", how["endpoint"], "--deployment", how["deployment"], "--json")
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
from pipeline.store.spool import Spool
from pipeline.store.storage import LocalStorage

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
    spool.keep("b", [("audio/b.wav", b"b")], {})
print(time.monotonic() - began)
"""


@pytest.mark.parametrize("where", ["output", "spool"])
def test_a_reply_that_finds_no_descriptor_waits_for_one(where, tmp_path):
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


def test_the_soft_limit_is_raised_to_what_the_system_allows():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[1]), before[1]))
        descriptors.raise_limit()
        assert descriptors.limit() == min(before[1], descriptors.MOST)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_calls_are_what_descriptors_leave_room_for(monkeypatch):
    monkeypatch.setattr(descriptors, "limit", lambda: 400)
    monkeypatch.setattr(descriptors, "open_now", lambda: 40)
    assert descriptors.calls_allowed(in_stores=False, streams=False) == 400 - 40 - descriptors.RESERVE
    assert descriptors.calls_allowed(in_stores=False, streams=True) == (400 - 40 - descriptors.RESERVE) // 2
    monkeypatch.setattr(descriptors, "limit", lambda: 140)
    with pytest.raises(ConfigError, match="ulimit -n"):
        descriptors.calls_allowed(in_stores=True, streams=False)
    monkeypatch.setattr(descriptors, "limit", lambda: None)
    assert descriptors.calls_allowed(in_stores=False, streams=False) is None
