"""What every test stands on: no account of the user's, and one emulator for a whole test run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:  # some of it needs an extra that a plain installation does not have
    from collections.abc import Iterator

    from audiobatch_emulator.process import EmulatorProcess
    from tests import standing
    from tests.postgresql_server import PostgresqlServer
    from tests.remote_stores import S3, Azurite

#: Properties are about what is computed; how long it takes is the benchmarks' matter.
#: The gate asks the same each time; who runs them by hand asks anew.
hypothesis.settings.register_profile(
    "audiobatch",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("audiobatch")

_ACCOUNT = ("AZURE_", "OPENAI_", "IDENTITY_", "MSI_", "AUDIOBATCH_", "IMDS_", "AWS_")


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the credentials, settings, `.env`, or spool of whoever runs it."""
    for name in os.environ:
        if name.startswith(_ACCOUNT):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(scope="session")
def shared_emulator(audio_emulator_process: EmulatorProcess) -> EmulatorProcess:
    """The emulator of the whole test run, as the last test left it."""
    return audio_emulator_process


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    """A PostgreSQL server. Each output has a schema of its own, so that tests are apart by their folders."""
    from tests.postgresql_server import PostgresqlServer

    with PostgresqlServer() as server:
        yield server


@pytest.fixture
def emulator(audio_emulator: EmulatorProcess) -> EmulatorProcess:
    """The emulator, reset for this test."""
    return audio_emulator


@pytest.fixture(scope="session")
def azurite() -> Iterator[Azurite]:
    """Azure's own stand-in for Blob Storage, by npm."""
    from tests.remote_stores import Azurite, running

    yield from running(Azurite)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """A server that answers as S3 does, by pip."""
    from tests.remote_stores import S3, running

    yield from running(S3)


@pytest.fixture(scope="session")
def standing_server() -> Iterator[standing.Server]:
    """`audiobatch server`, started by the first test that wants one; `address` is where its API is."""
    from tests import standing

    with standing.server() as started:
        yield started
