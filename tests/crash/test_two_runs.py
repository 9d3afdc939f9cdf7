"""Two runs started at the same instant on one folder, again and again: one works, one says who does."""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from audiobatch_emulator.process import EmulatorProcess
from tests.crash import observing
from tests.narrowing import present
from tests.running import audiobatch, last_json

ROOT = Path(__file__).resolve().parents[2]
TIMES = int(os.environ.get("AUDIOBATCH_TEST_TWO_RUNS", "20"))
ITEMS = 6


def environment(emulator: EmulatorProcess, tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "AZURE_OPENAI_ENDPOINT": emulator.base_url,
        "AZURE_OPENAI_API_KEY": emulator.api_key,
        "AZURE_OPENAI_DEPLOYMENT_NAME": "gpt-audio-1.5",
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "OPENBLAS_NUM_THREADS": "1",
    }


@pytest.mark.timeout(300)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, so that twenty times do not take minutes")
def test_of_two_runs_at_the_same_instant_one_works_and_the_other_says_who(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    emulator.put_faults({"do": {"latency_s": 0.1}})
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.crash.test_two_runs import pairs\n"
        "pairs(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, ROOT, tmp_path, str(TIMES), str(ITEMS)],
        env=environment(emulator, tmp_path),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    journal = Counter(record["item_hash"] for record in emulator.settled_journal(0))
    for number in range(TIMES):
        codes = json.loads((tmp_path / f"codes-{number}.json").read_text())
        said = [(tmp_path / f"log-{number}-{which}").read_text() for which in range(2)]
        if sorted(codes) == [0, 2]:
            loser = said[codes.index(2)]
            assert re.search(r"is in use by run \S+ \(process \d+ on ", loser), loser
            assert "audiobatch status" in loser
        else:  # the first had ended before the second looked
            assert codes == [0, 0], said
        for n in range(ITEMS):
            assert journal[observing.hash_of_prompt(f"Pair {number}, say {n}.")] == 1
        folder = tmp_path / f"out-{number}"
        assert observing.look(folder).statuses == Counter(succeeded=ITEMS)
        assert observing.temporary_files(folder) == 0
    assert len(journal) == TIMES * ITEMS


def pairs(folder: str, times: int, items: int) -> None:
    """Start `times` pairs by fork, one pair after another; leave their exit codes and words beside the outputs."""
    from tests.crash import children

    children.load()
    base = Path(folder)
    for number in range(times):
        table = base / f"prompts-{number}.jsonl"
        lines = [json.dumps({"id": f"p{n}", "prompt": f"Pair {number}, say {n}."}) for n in range(items)]
        table.write_text("\n".join(lines) + "\n")
        both = [
            children.Child(
                *("run", table, "--output", base / f"out-{number}", "--no-prefect", "--quiet"),
                log=base / f"log-{number}-{which}",
                env={},
            )
            for which in range(2)
        ]
        codes = [child.wait(120) for child in both]
        (base / f"codes-{number}.json").write_text(json.dumps(codes))


def test_status_reads_while_a_run_writes_and_says_who_is_at_work(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    emulator.put_faults({"do": {"latency_s": 1.0}})
    table = tmp_path / "prompts.jsonl"
    table.write_text("".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(200)))
    out = tmp_path / "out"
    env = environment(emulator, tmp_path)
    command = [sys.executable, "-c", "from audiobatch_flows.cli.main import main; main()"]
    running = subprocess.Popen(
        [*command, "run", table, "--output", out, "--no-prefect", "--quiet", "--max-concurrency", "2"],
        env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while len(emulator.journal()) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        told = audiobatch("status", out, "--json", env=env)
        assert told.returncode == 0, told.stderr
        seen = last_json(told.stdout)
        assert f"process {running.pid}" in seen["running"]
        assert 0 < seen["statuses"]["succeeded"] < 200
        assert seen["statuses"]["pending"] > 0
        assert (seen["run"]["queued"], seen["run"]["ended"] > 0, seen["run"]["in_flight"] > 0) == (
            200,
            True,
            True,
        )
        assert " of its 200 items ended, " in audiobatch("status", out, env=env).stdout
        refused = audiobatch("purge", out, "--yes", env=env)
        assert (refused.returncode, "is in use by run" in refused.stderr) == (2, True)
        looked = audiobatch("verify", out, env=env)
        assert looked.returncode == 0, looked.stdout
        assert "is at work" in looked.stderr
    finally:
        running.terminate()
        assert running.wait(120) == 143, present(running.stderr).read()
        present(running.stderr).close()
    assert last_json(audiobatch("status", out, "--json", env=env).stdout)["running"] is None
