"""`sample_inputs/notify.py`: a real server's automation calls a real address at the end of a job."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from audiobatch_emulator.process import EmulatorProcess
from tests import flows_prefect, standing
from tests.running import ROOT, audiobatch, write_wav

pytestmark = [
    *(pytest.mark.filterwarnings(text) for text in flows_prefect.WARNINGS),
    pytest.mark.timeout(400),
]


@dataclass
class Hook:
    """An address on this machine, and what was posted to it."""

    address: str
    posted: list[str]


@pytest.fixture
def hook() -> Iterator[Hook]:
    """A loopback address that remembers what was posted to it."""
    posted: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            posted.append(json.loads(body)["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Hook(address=f"http://127.0.0.1:{server.server_port}/hook", posted=posted)
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_end_a_failure_and_a_parked_run_each_call_the_address_once(
    tmp_path: Path, standing_server: standing.Server, emulator: EmulatorProcess, hook: Hook
) -> None:
    here = {"PREFECT_API_URL": standing_server.address, "PREFECT_HOME": str(flows_prefect.home())}
    for _ in range(2):  # made once, brought up to date once
        made = subprocess.run(
            [sys.executable, ROOT / "sample_inputs" / "notify.py", hook.address],
            env={**os.environ, **here},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert made.returncode == 0, made.stderr
        assert "prefect.flow-run.Parked" in made.stdout

    def run(name: str, key: str) -> int:
        inbox = tmp_path / name
        for number in range(3):
            write_wav(inbox / f"{number}.wav", pitch_hz=200 + 20 * number)
        env = {**here, "AZURE_OPENAI_API_KEY": key, "AZURE_OPENAI_ENDPOINT": emulator.base_url}
        env["AZURE_OPENAI_DEPLOYMENT_NAME"] = "gpt-audio-1.5"
        given = ("run", inbox, "--output", tmp_path / f"{name}-out", "--quiet")
        return audiobatch(*given, env=env).returncode

    assert run("good", emulator.api_key) == 0
    assert run("wrong", "not-the-key") == 4
    emulator.put_faults({"when": {}, "do": {"status": 429, "headers": {"retry-after": "3600"}}})
    assert run("late", emulator.api_key) == 5
    texts = flows_prefect.until(lambda: len(hook.posted) >= 3, 120) and sorted(hook.posted)
    assert texts, hook.posted
    good, late, wrong = texts
    assert good.startswith(f"good → {tmp_path}/good-out: Completed: 3 succeeded;")
    assert late.startswith(f"late → {tmp_path}/late-out: Parked: ")
    assert wrong.startswith(f"wrong → {tmp_path}/wrong-out: Failed: ")
    assert len(hook.posted) == 3
