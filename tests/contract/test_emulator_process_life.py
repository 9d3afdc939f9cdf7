"""Starting, stopping, ports, and what survives a kill."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest
from openai import OpenAI

from audiobatch_emulator.process import EmulatorProcess
from tests.contract.emulator_clients import MODEL, PROMPT, SPOKEN, ask, client, raw_post
from tests.running import ROOT

BODY = {"model": MODEL, "messages": PROMPT, **SPOKEN}


def test_the_ready_line_says_all_that_a_client_needs(server: EmulatorProcess) -> None:
    assert list(server.ready) == [
        *("base_url", "https_base_url", "api_key", "certificate"),
        *("identity_endpoint", "identity_header", "journal", "pid"),
    ]
    assert server.base_url.startswith("http://127.0.0.1:")
    assert server.https_base_url.startswith("https://127.0.0.1:")
    assert server.health()["status"] == "ok"


def test_tls_is_verified_with_the_printed_certificate(server: EmulatorProcess) -> None:
    context = ssl.create_default_context(cafile=server.certificate)
    context.verify_flags |= getattr(ssl, "VERIFY_X509_STRICT", 0)
    port = server.https_base_url.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost"):
        with (
            httpx2.Client(verify=context, trust_env=False) as http,
            OpenAI(base_url=f"https://{host}:{port}/v1/", api_key=server.api_key, http_client=http) as openai,
        ):
            assert ask(openai).choices[0].message.audio.data
    folder = Path(server.certificate).parent
    assert [path.name for path in folder.iterdir()] == ["emulator-ca.pem"], "the private key is on disk"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_on_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    emulator = EmulatorProcess("--speech", "tone", "--journal", str(tmp_path / "j")).start()
    raw_post(emulator, json=BODY)
    folder = Path(emulator.certificate).parent
    os.kill(emulator.pid, number)
    assert emulator.wait() == 0
    assert emulator.stderr() == ""
    assert not folder.exists()


def test_a_call_under_way_does_not_hold_up_its_end() -> None:
    emulator = EmulatorProcess("--speech", "tone", "--latency", "60").start()
    host, _, port = emulator.base_url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        body = json.dumps(BODY).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {emulator.api_key}\r\n"
        )
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        while not emulator.journal():
            time.sleep(0.01)
        started = time.monotonic()
        assert emulator.stop() == 0
    assert time.monotonic() - started < 10


def test_it_ends_with_its_standard_input_when_told_so() -> None:
    command = [sys.executable, "-m", "audiobatch_emulator", "--speech", "tone", "--exit-on-stdin-close"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["pid"] == process.pid
        process.stdin.close()
        assert process.wait(timeout=120) == 0


def test_the_journal_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    emulator = EmulatorProcess("--speech", "tone", "--journal", str(path), "--latency", "0.5").start()
    assert emulator.ready["journal"] == str(path)
    assert raw_post(emulator, json=BODY).status_code == 200

    def call() -> None:
        with pytest.raises(httpx2.HTTPError):
            raw_post(emulator, json=BODY)

    caller = threading.Thread(target=call)
    caller.start()
    while len(emulator.journal()) < 2:
        time.sleep(0.01)
    emulator.kill()
    caller.join()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    records = list({record["n"]: record for record in lines}.values())
    assert [(r["billed"], r["delivered"], r["status"]) for r in records] == [
        (True, True, 200),
        (False, False, None),
    ]
    with EmulatorProcess("--speech", "tone", "--journal", str(path)) as again:
        assert again.journal() == records
        raw_post(again, json=BODY)
        assert [record["n"] for record in again.journal()] == [1, 2, 3]
        assert again.journal()[2]["attempt"] == 2


def test_a_client_that_goes_away_is_billed_all_the_same(server: EmulatorProcess) -> None:
    server.put_faults({"do": {"latency_s": 0.5}})
    with pytest.raises(httpx2.HTTPError), httpx2.Client(trust_env=False, timeout=0.2) as impatient:
        impatient.post(
            f"{server.base_url}/v1/chat/completions",
            headers={"Authorization": f"Bearer {server.api_key}"},
            json=BODY,
        )
    (record,) = server.settled_journal(1)
    assert (record["status"], record["billed"], record["delivered"]) == (200, True, False)
    assert record["output_audio_tokens"] > 0


def test_a_body_that_never_ends_is_not_billed(server: EmulatorProcess) -> None:
    host, _, port = server.base_url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    (record,) = server.settled_journal(1)
    assert (record["status"], record["billed"], record["delivered"]) == (None, False, False)


def test_the_journal_is_what_the_contract_lists(server: EmulatorProcess) -> None:
    with client(server) as openai:
        ask(openai)
    (record,) = server.settled_journal(1)
    assert list(record) == [
        *("n", "at", "finished_at", "transport", "deployment", "item_hash", "attempt", "status", "fault"),
        *("billed", "delivered", "input_text_tokens", "input_audio_tokens", "output_text_tokens"),
        *("output_audio_tokens", "max_in_window_10s"),
    ]
    assert (record["n"], record["transport"], record["deployment"], record["attempt"]) == (
        1,
        "chat",
        MODEL,
        0,
    )
    assert (record["status"], record["fault"], record["billed"], record["delivered"]) == (
        200,
        None,
        True,
        True,
    )
    assert record["at"] <= record["finished_at"]
    assert record["at"].endswith("Z")


def test_listening_to_others_is_warned_about() -> None:
    with EmulatorProcess("--speech", "tone", "--host", "0.0.0.0") as emulator:
        assert emulator.base_url.startswith("http://127.0.0.1:")
        assert emulator.health()
    assert "where others can reach it" in emulator.stderr()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--quota", "x"), "not of the form NAME=rpm:N,tpm:N"),
        (("--quota", "x=rpm:many"), "write rpm:N, tpm:N or both"),
        (("--deployment", "x"), "not of the form NAME=MODEL"),
        (("--latency", "-1"), "latency_s must be 0 or more"),
        (("--faults", "/nowhere.json"), "does not exist"),
        (("--speech", "song"), "song"),
        (("--token-life", "0"), "token_life_s must be a positive number"),
    ],
)
def test_settings_that_cannot_work_are_named(flags: tuple[str, ...], said: str) -> None:
    command = [sys.executable, "-m", "audiobatch_emulator", *flags]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_taken_port_is_named(server: EmulatorProcess) -> None:
    port = server.base_url.rpartition(":")[2]
    command = [sys.executable, "-m", "audiobatch_emulator", "--speech", "tone", "--port", port]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert port in ended.stderr
    assert "Traceback" not in ended.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from audiobatch_emulator.command import emulator; "
        "r = CliRunner().invoke(emulator, ['--help']); assert '--quota' in r.output, r.output; "
        "print([m for m in ('aiohttp', 'av', 'numpy', 'pydantic', 'cryptography') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.stdout.strip() == "[]", ended.stderr


def test_the_emulator_stands_apart_from_the_client_s_code() -> None:
    code = (
        "import sys, audiobatch_emulator.app; "
        "apart = ('openai', 'prefect', 'audiobatch.transports', 'audiobatch.limits'); "
        "print([name for name in sys.modules if name.startswith(apart)])"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.stdout.strip() == "[]", ended.stderr
