"""Stops of the real engine, with the flows and without: what is in flight ends and is recorded, the rest waits."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from signal import Signals
from typing import Any

import pytest
from prefect.client.schemas.objects import FlowRun

from audiobatch.execution.job import Job
from audiobatch.stop import StopReason
from audiobatch_emulator.process import EmulatorProcess
from tests import flows_prefect
from tests.crash import observing
from tests.narrowing import present
from tests.running import azure, run_job

ROOT = Path(__file__).resolve().parents[2]
CALL_S = 1.0
ITEMS = 40
pytestmark = [
    pytest.mark.timeout(300),  # Prefect's servers, two of them, on a machine that is busy with all the others
    pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals"),
    *[pytest.mark.filterwarnings(text) for text in flows_prefect.WARNINGS],
]

#: A user's own program, or what `serve` and a worker start: the flow without our command line.
FLOW = """
import sys
from audiobatch_flows import RunFailed
from audiobatch_flows.flow import process_folder
from audiobatch.config.jobspec import JobSpec
try:
    summary = process_folder(JobSpec.model_validate_json(sys.argv[1]))
    import asyncio, inspect
    summary = asyncio.run(summary) if inspect.iscoroutine(summary) else summary
except RunFailed as ended:
    summary = ended.summary
sys.exit(summary.exit_code)
"""


class Run:
    """A job of slow calls, four at once, of which some are in flight."""

    def __init__(
        self,
        emulator: EmulatorProcess,
        tmp_path: Path,
        mode: str,
        *,
        address: str | None = None,
        call_s: float = CALL_S,
    ) -> None:
        self.emulator = emulator
        self.out = tmp_path / "out"
        self.table = tmp_path / "prompts.jsonl"
        self.table.write_text("".join(json.dumps({"prompt": f"Stop, say {n}."}) + "\n" for n in range(ITEMS)))
        emulator.put_faults({"do": {"latency_s": call_s}})
        self.env = {
            **flows_prefect.child_environment(address),
            "AZURE_OPENAI_ENDPOINT": emulator.base_url,
            "AZURE_OPENAI_API_KEY": emulator.api_key,
            "AZURE_OPENAI_DEPLOYMENT_NAME": "gpt-audio-1.5",
            "XDG_STATE_HOME": str(tmp_path / "state"),
        }
        if mode == "flow":
            spec = {"inputs": [str(self.table)], "output": str(self.out), "max_concurrency": 4}
            spec |= {"endpoint": emulator.base_url, "deployment": "gpt-audio-1.5"}
            command: list[str | Path] = [sys.executable, "-c", FLOW, json.dumps(spec)]
        else:
            command = self._command(*(["--no-prefect"] if mode == "plain" else []))
        self.process = subprocess.Popen(
            command, env=self.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        # The first call goes alone; then four are in flight.
        assert flows_prefect.until(lambda: len(emulator.journal()) >= 4, 100.0), self.process.communicate()

    def _command(self, *flags: str) -> list[str | Path]:
        run: list[str | Path] = [
            sys.executable,
            "-c",
            "from audiobatch_flows.cli.main import main; main()",
            "run",
            self.table,
            "--output",
            self.out,
        ]
        return [*run, "--max-concurrency", "4", "--json", *flags]

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err

    def assert_drained(self) -> None:
        """What was sent has arrived and is recorded; nothing is unknown; the manifest says so."""
        seen = observing.look(self.out)
        journal = self.emulator.settled_journal(0)
        assert seen.open_calls == 0
        assert seen.statuses == Counter(succeeded=len(journal))
        assert 1 < len(journal) < ITEMS
        assert all(record["delivered"] for record in journal)
        rows = Counter(row["status"] for row in observing.manifest_rows(self.out))
        assert rows == Counter(succeeded=len(journal), pending=ITEMS - len(journal))

    def resumed(self) -> list[dict[str, Any]]:
        """The same command again, to its end: nothing is paid for twice."""
        self.emulator.put_faults()
        ended = subprocess.run(
            self._command("--no-prefect"), env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=90
        )
        assert ended.returncode == 0, ended.stderr
        assert observing.look(self.out).statuses == Counter(succeeded=ITEMS)
        return self.emulator.settled_journal(0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_drains_and_the_same_command_goes_on(
    emulator: EmulatorProcess, tmp_path: Path, number: Signals, code: int
) -> None:
    run = Run(emulator, tmp_path, "plain")
    run.process.send_signal(number)
    returned, out, err = run.end()
    assert returned == code, err
    assert "calls in flight may take up to 20 s" in err
    assert "The same command goes on later" in err
    assert json.loads(out.splitlines()[-1])["stopped_by"] == number.name.lower()
    run.assert_drained()
    assert len(run.resumed()) == ITEMS


def test_the_second_signal_gives_up_what_is_in_flight_and_names_it_unknown(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    run = Run(emulator, tmp_path, "plain", call_s=3.0)
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    run.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    returned, out, err = run.end()
    assert (returned, time.monotonic() - began < 10) == (130, True), err
    seen = observing.look(run.out)
    assert seen.open_calls == 0
    assert json.loads(out.splitlines()[-1])["unknown"] == seen.statuses["unknown"] > 0
    assert len(run.resumed()) == ITEMS + seen.statuses["unknown"]


def test_calls_that_outlive_the_drain_time_become_unknown(emulator: EmulatorProcess, tmp_path: Path) -> None:
    run = Run(emulator, tmp_path, "plain", call_s=1.0)
    emulator.put_faults({"do": {"latency_s": 60}})

    def long_under_way() -> list[dict[str, Any]]:
        """Calls that were asked for since the fault: those from before it end within a second."""
        before = datetime.now(UTC) - timedelta(seconds=2)
        return [
            call
            for call in emulator.journal()
            if call["finished_at"] is None and datetime.fromisoformat(call["at"]) < before
        ]

    assert flows_prefect.until(lambda: len(long_under_way()) == 4, 30.0)
    spec = json.loads((run.out / "job.json").read_text())["spec"]
    assert spec["drain_timeout_s"] == 20
    run.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    returned, _, err = run.end()
    assert returned == 143, err
    assert 17 < time.monotonic() - began < 30, "service managers kill after 30 s"
    assert observing.look(run.out).statuses["unknown"] == 4


def test_a_signal_starts_the_drain_time_also_where_the_run_stops_at_a_limit(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    texts = {"good": "Say one.", "slow": "Take your time.", "bad": "Say two."}
    table = tmp_path / "prompts.jsonl"
    table.write_text("".join(json.dumps({"id": id_, "prompt": text}) + "\n" for id_, text in texts.items()))
    emulator.put_faults(
        {"when": {"text": texts["slow"]}, "do": {"latency_s": 40}},
        {"when": {"text": texts["bad"]}, "do": {"status": 400, "latency_s": 0.5}},
    )
    stopped: list[Any] = []

    def signal_when_it_drains(job: Job) -> None:
        async def wait() -> None:
            await job.stop.soft.wait()
            await asyncio.sleep(1)
            stopped.append(time.monotonic())
            job.stop.ask(StopReason.SIGTERM)

        stopped.append(asyncio.get_running_loop().create_task(wait()))

    settings = azure(emulator, max_concurrency=4, max_failures="0", drain_timeout_s=1)
    summary = run_job(
        inputs=[str(table)], output=str(tmp_path / "out"), on_open=signal_when_it_drains, **settings
    )
    assert time.monotonic() - stopped[-1] < 15
    assert (summary.exit_code, summary.stopped_by) == (6, "max_failures")
    assert (summary.succeeded, summary.failed, summary.unknown) == (1, 1, 1)


@pytest.mark.parametrize(
    ("mode", "number", "code"),
    [("command", signal.SIGINT, 130), ("flow", signal.SIGTERM, 143)],
)
async def test_under_prefect_a_signal_drains_and_the_flow_run_is_cancelled(
    emulator: EmulatorProcess, tmp_path: Path, mode: str, number: Signals, code: int
) -> None:
    async with flows_prefect.connected():
        run = Run(emulator, tmp_path, mode, address=await flows_prefect.url())
        run.process.send_signal(number)
        returned, _, err = run.end()
        assert returned == code, err
        assert "Traceback" not in err
        run.assert_drained()
        assert present((await _flow_run(run.out)).state).type.value == "CANCELLED"


async def test_cancelled_in_prefects_pages_the_run_drains_and_is_not_left_cancelling(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelling

    async with flows_prefect.connected():
        run = Run(emulator, tmp_path, "flow", address=await flows_prefect.url())
        async with get_client() as client:
            await client.set_flow_run_state((await _flow_run(run.out)).id, Cancelling())
        returned, _, err = run.end()
        assert returned == 130, err
        run.assert_drained()
        assert present((await _flow_run(run.out)).state).type.value == "CANCELLED"


async def test_ctrl_c_reaches_the_whole_group_but_prefects_own_server_records_the_end(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    run = Run(emulator, tmp_path, "command")
    os.killpg(run.process.pid, signal.SIGINT)
    returned, _, err = run.end()
    assert returned == 130, err
    assert "Traceback" not in err
    assert "could not record" not in err
    run.assert_drained()


async def _flow_run(output: Path) -> FlowRun:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import FlowRunSort

    async with get_client() as client:
        for run in await client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=20):
            if run.parameters.get("job", {}).get("output") == str(output):
                return run
    raise AssertionError("no such flow run")
