"""The embedded Prefect server: its start, its settings, its end."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from audiobatch.errors import ConfigError
from audiobatch_flows import prefect_private, server
from audiobatch_flows.server import EmbeddedServer
from tests import flows_prefect
from tests.narrowing import present

linux = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")


async def test_two_servers_started_at_once_on_a_new_home_both_answer() -> None:
    both = flows_prefect.pair()
    await asyncio.gather(*(child.wait_healthy() for child in both))
    assert both[0].api_url != both[1].api_url
    assert all(server.answers(child.api_url, 5.0) for child in both)
    assert "Error" not in both[0].log_tail() + both[1].log_tail()


async def test_a_started_server_is_at_once_where_prefect_looks_for_it_and_gone_after_stop() -> None:
    await flows_prefect.url()  # the home's database is migrated
    secrets = {"AZURE_OPENAI_API_KEY": "canary-1", "OPENAI_API_KEY": "canary-2"}
    with mock.patch.dict(os.environ, {"PREFECT_HOME": str(flows_prefect.home()), **secrets}):
        os.environ.pop("PREFECT_API_URL", None)
        one = EmbeddedServer()
        one.start()
        assert not server.answers(one.api_url, 0.5), "it did not wait until the server answers"
        assert os.environ["PREFECT_API_URL"] == one.api_url
        pid = one.pid
        await one.wait_healthy()
        environment = Path(f"/proc/{pid}/environ")
        if environment.exists():
            assert b"canary" not in environment.read_bytes()
            assert os.getsid(present(pid)) == pid
        assert one.log_tail() == ""
        one.stop()
        one.stop()
        assert "PREFECT_API_URL" not in os.environ
        assert one.pid is None
    assert not flows_prefect.alive(present(pid))


def test_settings_of_the_users_own_are_left_alone() -> None:
    with mock.patch.dict(os.environ, {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "DEBUG"}):
        server.quiet_prefect()
        assert os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] == "DEBUG"
        assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


async def test_a_server_that_cannot_start_is_a_message_with_its_last_words_and_a_way_without() -> None:
    broken = flows_prefect.started(
        PREFECT_SERVER_DATABASE_CONNECTION_URL="sqlite+aiosqlite:////proc/no/such.db"
    )
    with pytest.raises(ConfigError, match="--no-prefect") as told:
        await broken.wait_healthy()
    assert "last words" in told.value.message
    assert broken.pid is None


async def test_a_server_that_does_not_answer_in_time_is_given_up() -> None:
    slow = flows_prefect.started()
    pid = slow.pid
    with pytest.raises(ConfigError, match=r"did not answer within 0\.2 s"):
        await slow.wait_healthy(deadline_s=0.2)
    assert not flows_prefect.alive(present(pid))


@linux
@pytest.mark.parametrize("when", ["starting", "serving"])
def test_a_client_killed_leaves_no_server_behind(when: str) -> None:
    program = (
        "import asyncio, time\n"
        "from audiobatch_flows.server import EmbeddedServer\n"
        "server = EmbeddedServer()\n"
        "server.start()\n"
        f"if {when == 'serving'}: asyncio.run(server.wait_healthy())\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", program],
        env=flows_prefect.child_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with client, present(client.stdout):
        pid = int(present(client.stdout).readline())
        assert flows_prefect.alive(pid)
        client.send_signal(signal.SIGKILL)
    assert flows_prefect.until(lambda: not flows_prefect.alive(pid), 10.0)


def test_a_folder_named_flows_where_the_user_stands_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "__init__.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    one = flows_prefect.started()
    one.stop()
    assert one.api_url


class TestSchema:
    def test_the_file_is_found_in_the_address(self) -> None:
        assert prefect_private.sqlite_path("sqlite+aiosqlite:////home/a%20b/prefect.db") == Path(
            "/home/a b/prefect.db"
        )
        assert prefect_private.sqlite_path("sqlite+aiosqlite:///prefect.db?x=1") == Path("prefect.db")

    @pytest.mark.parametrize(
        "address",
        [
            "postgresql+asyncpg://u:p@h/db",
            "sqlite+aiosqlite:///:memory:",
            "sqlite+aiosqlite:///file::memory:?x",
            "",
        ],
    )
    def test_other_databases_have_none(self, address: str) -> None:
        assert prefect_private.sqlite_path(address) is None

    def test_a_database_is_current_only_at_the_revision_and_version_recorded(self, tmp_path: Path) -> None:
        database = tmp_path / "prefect.db"
        assert not prefect_private.is_migrated(database, "3.8.8")
        migrate(database, "abc")
        assert not prefect_private.is_migrated(database, "3.8.8")
        prefect_private.record_migration(database, "3.8.8")
        assert prefect_private.is_migrated(database, "3.8.8")
        assert not prefect_private.is_migrated(database, "3.8.9")
        migrate(database, "def")
        assert not prefect_private.is_migrated(database, "3.8.8")
        database.unlink()
        assert not prefect_private.is_migrated(database, "3.8.8")
        assert not database.exists()


def migrate(database: Path, revision: str) -> None:
    import contextlib
    import sqlite3

    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE IF NOT EXISTS alembic_version (version_num TEXT)")
        connection.execute("DELETE FROM alembic_version")
        connection.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
