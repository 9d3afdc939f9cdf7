"""`prefect.yaml` with a real `prefect worker` of a process work pool."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

from audiobatch_emulator.process import EmulatorProcess
from tests import flows_prefect, standing
from tests.narrowing import present
from tests.running import ROOT, read_manifest, write_wav

pytestmark = [
    *(pytest.mark.filterwarnings(text) for text in flows_prefect.WARNINGS),
    pytest.mark.timeout(400),
    pytest.mark.skipif("AUDIOBATCH_LONG_TESTS" not in os.environ, reason="AUDIOBATCH_LONG_TESTS is not set"),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the flow's process by /proc"),
]
PREFECT = (sys.executable, "-m", "prefect")


def prefect(*arguments: str, env: dict[str, str], cwd: Path = ROOT) -> str:
    command = [*PREFECT, "--no-prompt", *arguments]
    ended = subprocess.run(
        command, env={**os.environ, **env}, cwd=cwd, capture_output=True, text=True, timeout=150
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def process_of(flow_run_id: UUID) -> int | None:
    """The process id of a flow run that a worker has started."""
    wanted = f"PREFECT__FLOW_RUN_ID={flow_run_id}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            if b"prefect.engine" in command and wanted in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
        except OSError:
            continue
    return None


async def test_a_worker_runs_what_prefect_yaml_deploys_and_sigterm_drains_it(
    tmp_path: Path, standing_server: standing.Server, emulator: EmulatorProcess
) -> None:
    from prefect.client.orchestration import get_client

    here: dict[str, str] = {
        "PREFECT_API_URL": standing_server.address,
        "PREFECT_HOME": str(flows_prefect.home()),
        "AZURE_OPENAI_API_KEY": emulator.api_key,
    }
    inbox, out = tmp_path / "inbox", tmp_path / "out"
    for number in range(30):
        write_wav(inbox / f"{number:02}.wav", pitch_hz=200 + number)
    place = tmp_path / "checkout"
    place.mkdir()
    shutil.copy(ROOT / "prefect.yaml", place)
    prefect("work-pool", "create", "audiobatch", "--type", "process", env=here)
    prefect("deploy", "--name", "process-folder", env=here, cwd=place)
    emulator.put_faults({"when": {}, "do": {"latency_s": 3}})
    job = {
        "inputs": [str(inbox)],
        "output": str(out),
        "endpoint": emulator.base_url,
        "deployment": "gpt-audio-1.5",
        "max_concurrency": 3,
    }
    worker = standing.Command("worker", "start", "--pool", "audiobatch", program=PREFECT, env=here)
    try:
        with standing.connected(standing_server.address):
            async with get_client() as client:
                deployment = await client.read_deployment_by_name("process-folder/process-folder")
                run = await client.create_flow_run_from_deployment(deployment.id, parameters={"job": job})
                started = await asyncio.to_thread(
                    flows_prefect.until, lambda: len(emulator.journal()) >= 4, standing.PATIENCE_S
                )
                assert started, worker.out + worker.err
                pid = process_of(run.id)
                os.kill(present(pid), signal.SIGTERM)
                ended = await standing.until_run(out, lambda one: one.state.is_final())
                assert (ended.id, ended.state.name) == (run.id, "Cancelled")
                assert "pending" in ended.state.message
                assert await asyncio.to_thread(
                    flows_prefect.until, lambda: not flows_prefect.alive(present(pid)), 60
                )
                calls = emulator.settled_journal(1)
                assert all(call["delivered"] for call in calls), "a call was aborted"
                statuses = [row["status"] for row in read_manifest(out / "manifest.csv")]
                assert statuses.count("succeeded") == len(calls)
                assert set(statuses) == {"succeeded", "pending"}

                emulator.put_faults()
                again = await client.create_flow_run_from_deployment(deployment.id, parameters={"job": job})
                done = await standing.until_run(out, lambda one: one.id == again.id and one.state.is_final())
                assert done.state.name == "Completed"
                assert f"{len(calls)} were done before" in done.state.message
    finally:
        worker.end(signal.SIGINT)
    assert len(emulator.journal()) == 30
