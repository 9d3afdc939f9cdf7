"""A folder from elsewhere gets nobody's credentials: it says where to connect only once it is trusted."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from audiobatch.ledger import engine
from audiobatch.ledger.engine import open_postgresql
from audiobatch_emulator.process import EmulatorProcess
from tests.postgresql_server import PostgresqlServer
from tests.running import audiobatch, azure, run_job, write_wav


@pytest.fixture
def done(emulator: EmulatorProcess, tmp_path: Path) -> Path:
    """An output folder of this user's."""
    write_wav(tmp_path / "in" / "memo.wav", seconds=0.5)
    out = tmp_path / "out"
    run_job(inputs=[str(tmp_path / "in")], output=str(out), **azure(emulator))
    return out


def changed(folder: Path, **spec: Any) -> None:
    """The same folder with other words in its job."""
    job = json.loads((folder / "job.json").read_text())
    job["spec"] |= spec
    (folder / "job.json").write_text(json.dumps(job))


def from_elsewhere(done: Path, target: Path) -> Path:
    shutil.copytree(done, target)
    job = json.loads((target / "job.json").read_text())
    job["job_id"] = "f" * 16
    (target / "job.json").write_text(json.dumps(job))
    return target


RETRY = ("retry", "--no-prefect", "--json")


def test_a_folder_of_this_user_s_own_is_trusted_wherever_it_is_moved_to(done: Path, tmp_path: Path) -> None:
    assert audiobatch(*RETRY, done).returncode == 0
    moved = done.rename(tmp_path / "moved")
    assert audiobatch(*RETRY, moved).returncode == 0


def test_a_folder_that_names_another_endpoint_by_now_is_refused_and_both_addresses_are_shown(
    done: Path,
) -> None:
    with EmulatorProcess("--speech", "tone") as other:
        changed(done, endpoint=other.base_url)
        refused = audiobatch(*RETRY, done)
        assert refused.returncode == 2
        assert other.base_url in refused.stderr
        assert "a file in it" in refused.stderr
        assert "--trust-folder" in refused.stderr
        assert audiobatch("status", done).returncode == 0, "nothing is sent, and the ledger is a file"
        assert other.journal() == []


def test_somebody_else_s_folder_is_trusted_once_it_is_said_to_be(done: Path, tmp_path: Path) -> None:
    folder = from_elsewhere(done, tmp_path / "theirs")
    assert audiobatch(*RETRY, folder).returncode == 2
    said = audiobatch(*RETRY, "--trust-folder", folder)
    assert "belongs to another output" in said.stderr, "the ledger in it is that of the copy's original"
    assert "--trust-folder" not in audiobatch(*RETRY, folder).stderr


def test_what_the_environment_names_needs_no_trust(
    done: Path, tmp_path: Path, emulator: EmulatorProcess
) -> None:
    folder = from_elsewhere(done, tmp_path / "theirs")
    ended = audiobatch(*RETRY, folder, env={"AZURE_OPENAI_ENDPOINT": emulator.base_url})
    assert "--trust-folder" not in ended.stderr


@contextmanager
def asking_for_a_password_in_clear() -> Iterator[tuple[int, Any, Any]]:
    """A server that speaks enough of PostgreSQL's protocol to ask; what it was sent."""
    came: list[bytes] = []
    tries: list[int] = []

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            tries.append(1)
            with line:
                line.settimeout(5)
                try:
                    while True:
                        size = struct.unpack(">I", line.recv(4))[0]
                        body = line.recv(size - 4)
                        if struct.unpack(">I", body[:4])[0] not in (80877103, 80877104):
                            break
                        line.send(b"N")
                    line.send(b"R" + struct.pack(">II", 8, 3))
                    if line.recv(1):
                        came.append(line.recv(1000))
                except (OSError, struct.error):
                    continue

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[1], came, tries
        listener.shutdown(socket.SHUT_RDWR)


def test_no_password_goes_in_clear_to_a_database_that_a_folder_names(done: Path) -> None:
    secret = {"PGPASSWORD": "canary-of-a-password"}
    with asking_for_a_password_in_clear() as (port, came, tries):
        address = f"postgresql+psycopg://me@127.0.0.1:{port}/audio"
        changed(done, ledger=address)
        refused = audiobatch("status", done, env=secret)
        assert (refused.returncode, tries) == (2, []), refused.stderr
        assert address in refused.stderr
        trusted = audiobatch("status", "--trust-folder", done, env=secret)
        assert trusted.returncode == 2
        assert "PGREQUIREAUTH" in trusted.stderr
        assert tries
        assert came == []
        audiobatch("status", done, env={**secret, "PGREQUIREAUTH": "password"})
        assert b"canary" in b"".join(came), "who says so gets it"


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("//me@db.example/x", {}, {"sslmode": "require"}),
        ("//me@10.0.0.5/x", {}, {"sslmode": "require"}),
        ("//me@db.example/x?sslmode=disable", {}, {"require_auth": "!password"}),
        ("//me@db.example/x", {"PGSSLMODE": "prefer"}, {"require_auth": "!password"}),
        ("//me@db.example/x", {"PGSSLMODE": "verify-full"}, {}),
        ("//me@127.0.0.1/x", {}, {"require_auth": "!password"}),
        ("//me@[::1]/x", {}, {"require_auth": "!password"}),
        ("//me@localhost/x?sslmode=require", {}, {}),
        ("//me@/x?host=/var/run/postgresql", {}, {"require_auth": "!password"}),
        ("//me@/x?host=db.example", {}, {"sslmode": "require"}),
        ("//me@/x", {"PGHOST": "db.example"}, {"sslmode": "require"}),
        ("//me@localhost/x", {"PGREQUIREAUTH": "password"}, {}),
        ("//me@localhost/x?require_auth=password", {}, {}),
        ("///?service=audio", {}, {}),
    ],
)
def test_how_a_connection_is_secured_unless_somebody_says_otherwise(
    url: str, environment: dict[str, Any], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.engine import make_url

    for name in ("PGSSLMODE", "PGREQUIREAUTH", "PGHOST", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert engine._secure(make_url("postgresql+psycopg:" + url)) == expected


def test_a_server_on_this_machine_is_reached_as_before(postgresql: PostgresqlServer, tmp_path: Path) -> None:
    open_postgresql(postgresql.url, str(tmp_path)).dispose()
