"""Where a ledger may be, and that no secret is ever in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from audiobatch.address import checked_ledger
from audiobatch.config.jobspec import JobSpec
from tests.running import audiobatch


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, None),
        ("", None),
        ("books/ledger.db", "books/ledger.db"),
        ("C:\\books\\ledger.db", "C:\\books\\ledger.db"),
        ("postgresql+psycopg://me@db.example/audio", "postgresql+psycopg://me@db.example/audio"),
        ("postgres://me@db.example:5433/audio", "postgresql+psycopg://me@db.example:5433/audio"),
        ("postgresql:///audio?host=/run/postgresql", "postgresql+psycopg:///audio?host=/run/postgresql"),
        ("postgresql:///?service=audio", "postgresql+psycopg:///?service=audio"),
    ],
)
def test_a_ledger_is_a_file_or_a_postgresql_database(given: str | None, kept: str | None) -> None:
    assert checked_ledger(given) == kept


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("mysql://me@db/audio", "PostgreSQL"),
        ("sqlite:///ledger.db", "path of its file"),
        ("postgresql://me@db", "name the database"),
        ("postgresql://me@db:port/audio", "PostgreSQL"),
    ],
)
def test_anything_else_is_refused_with_what_is_right(given: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        checked_ledger(given)


@pytest.mark.parametrize(
    "given",
    [
        "postgresql://me:canary-1@db/audio",
        "postgresql://me:@db/audio",
        "postgresql://me@db/audio?password=canary-1",
        "postgresql://me:canary-1@x@db/audio",
        "postgresql:///audio?sslpassword=canary-1",
    ],
)
def test_a_password_is_refused_with_where_it_belongs_and_never_repeated(given: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"PGPASSWORD.*pgpass.*service") as refused:
        JobSpec(ledger=given)
    assert "canary" not in str(refused.value)


def test_the_command_line_does_not_repeat_it_either(tmp_path: Path) -> None:
    said = audiobatch("run", tmp_path, "--provider", "local", "--ledger", "postgresql://me:canary-1@db/audio")
    assert said.returncode == 2
    assert "PGPASSWORD" in said.stderr
    assert "canary" not in said.stderr + said.stdout
    job = tmp_path / "job.toml"
    job.write_text('ledger = "postgresql://me:canary-1@db/audio"\n')
    said = audiobatch(
        "run", tmp_path, "--job", job, env={"AUDIOBATCH_LEDGER": "postgresql://me:canary-2@db/a"}
    )
    assert said.returncode == 2
    assert "canary" not in said.stderr + said.stdout
