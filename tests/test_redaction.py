"""What no message, file or row holds: credentials, however a service repeats them; and what a name may not do."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from urllib.parse import quote

import pytest

from audiobatch import errors
from audiobatch.errors import redacted, redacted_bytes, register_secret, shown
from audiobatch.execution.opening import run_log
from audiobatch.storage.local import LocalStorage
from audiobatch.storage.partial_reply import GATHER_BYTES, Received
from tests.bare_server import bare_server, completion
from tests.narrowing import local
from tests.running import audiobatch, read_manifest, run_job, write_wav

CANARY = "sk-CANARY/0123+456789="


@pytest.fixture(autouse=True)
def _own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_secrets", set())


@pytest.mark.parametrize(
    "written", [CANARY, json.dumps(CANARY)[1:-1], CANARY.replace("/", "\\/"), quote(CANARY, safe="")]
)
def test_a_credential_is_found_as_json_and_addresses_write_it(written: str) -> None:
    register_secret(CANARY)
    assert "CANARY" not in redacted(f"key {written}!")
    assert b"CANARY" not in redacted_bytes(f"key {written}!".encode())


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("cut\ndone 100.wav", "cut\\ndone 100.wav"),
        ("a\x1b[2J.wav", "a\\x1b[2J.wav"),
        ("a\u202egnp.wav", "a\\u202egnp.wav"),
        ("a\u2028b\x85c\td", "a\\u2028b\\x85c\\td"),
        ("Größe 日本.wav", "Größe 日本.wav"),
    ],
)
def test_a_name_stays_within_its_line(name: str, seen: str) -> None:
    assert shown(name) == seen


def test_a_record_of_the_log_is_a_line(tmp_path: Path) -> None:
    with run_log(tmp_path, "run"):
        logging.getLogger("audiobatch.x").info("%s: failed", "a\n2026-01-01 INFO all is well")
    (line,) = (tmp_path / "runs" / "run.log").read_text().splitlines()
    assert "a\\n2026-01-01" in line


def test_a_name_forges_no_line_of_what_is_printed(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_wav(folder / "good.wav", seconds=0.3)
    (folder / "cut\ndone            99.wav").write_text("no sound")
    for command in ("plan", "run"):
        words = ("--provider", "local", "--output", str(tmp_path / "out"))
        said = audiobatch(command, str(folder), *words, *(("--no-prefect",) if command == "run" else ()))
        lines = (said.stdout + said.stderr).splitlines()
        assert not [line for line in lines if line.startswith("done            99")], command
        assert "cut\\ndone" in said.stdout + said.stderr


def echoing(path: str, body: bytes, before: int) -> object:
    """A service that repeats the key wherever it can."""
    reply = completion(f"Your key is {CANARY}.", sound_s=0.5)
    reply["model"] = f"gpt-audio-1.5 {CANARY}"
    reply["id"] = CANARY
    reply["choices"][0]["message"]["audio"]["id"] = CANARY
    reply["choices"][0]["finish_reason"] = f"stop {CANARY}"
    odd = {"received": {"authorization": f"Bearer {CANARY}"}}
    refused = (400, {"error": {"message": f"bad key {CANARY}", "code": CANARY, "type": CANARY}})
    return (reply, odd, refused)[before % 3]


def test_a_key_is_written_nowhere_however_the_service_repeats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text("Say hello.")
    with bare_server(echoing) as server:
        monkeypatch.setenv("OPENAI_API_KEY", CANARY)
        summary = run_job(
            inputs=[str(folder)], output=str(tmp_path / "out"), provider="openai", endpoint=server.url,
            max_concurrency=1, max_failures="100%",
        )  # fmt: skip
    assert {row["status"] for row in read_manifest(local(summary.manifest))} == {"succeeded", "failed"}
    assert list((tmp_path / "out" / "replies").iterdir())
    forms = {CANARY, json.dumps(CANARY)[1:-1], CANARY.replace("/", "\\/"), quote(CANARY, safe="")}
    for path in tmp_path.rglob("*"):
        if path.is_file():
            found = [form for form in forms if form.encode() in path.read_bytes()]
            assert not found, path


def test_a_page_among_the_replies_is_kept_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("Say hello.")
    with bare_server(lambda *_: {"choices": [{"message": {"content": None}}]}) as server:
        run_job(inputs=[str(folder)], output=str(tmp_path / "out"), provider="openai", endpoint=server.url)
    assert [path.suffix for path in (tmp_path / "out" / "replies").iterdir()] == [".json"]


@pytest.mark.parametrize("size", [7, 1000, GATHER_BYTES])
def test_a_streamed_copy_holds_no_key_wherever_the_pieces_are_cut(size: int, tmp_path: Path) -> None:
    register_secret(CANARY)
    received = Received(LocalStorage(tmp_path), "item", 1)
    body = b"".join(b"x" * 1999 + CANARY.encode() for _ in range(200))

    async def write() -> None:
        await received.restart()
        for start in range(0, len(body), size):
            await received.write(body[start : start + size])

    asyncio.run(write())
    (copy,) = (tmp_path / "replies").iterdir()
    assert b"CANARY" not in copy.read_bytes(), "also while it comes"
    assert received.take() == redacted_bytes(body)
