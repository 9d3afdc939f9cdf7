"""`sample_inputs/notify.py`: a real server's automation calls a real address at the end of a job."""

import http.server
import json
import os
import subprocess
import sys
import threading

import flows_prefect
import pytest
from running import ROOT, audiobatch, write_wav

pytestmark = [
    *(pytest.mark.filterwarnings(text) for text in flows_prefect.WARNINGS),
    pytest.mark.timeout(400),
]


@pytest.fixture
def hook():
    """A loopback address that remembers what was posted to it."""
    posted = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            posted.append(json.loads(body)["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.posted = posted
    server.address_text = f"http://127.0.0.1:{server.server_port}/hook"
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_end_a_failure_and_a_parked_run_each_call_the_address_once(
    tmp_path, standing_server, emulator, hook
):
    here = {"PREFECT_API_URL": standing_server.address, "PREFECT_HOME": str(flows_prefect.home())}
    for _ in range(2):  # made once, brought up to date once
        made = subprocess.run(
            [sys.executable, ROOT / "sample_inputs" / "notify.py", hook.address_text],
            env={**os.environ, **here},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert made.returncode == 0, made.stderr
        assert "prefect.flow-run.Parked" in made.stdout

    def run(name, key):
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
