"""Folders that are watched: which files have arrived, and when they are complete."""

import os
from pathlib import Path
from typing import Any

import pytest

from audiobatch.config.jobspec import JobSpec
from audiobatch.errors import ConfigError
from audiobatch.execution.arrivals import Arrivals
from audiobatch.inputs.discover import Discovery
from tests.running import write_wav


def watched(*inputs: Path | str, **settings: Any) -> Arrivals:
    return Arrivals(JobSpec(inputs=tuple(map(str, inputs)), **settings))


def test_a_file_is_news_once_two_looks_find_it_the_same(tmp_path: Path) -> None:
    write_wav(tmp_path / "one.wav")
    arrivals = watched(tmp_path)
    assert not arrivals.look()
    assert arrivals.arriving == 1
    assert arrivals.look()
    assert arrivals.arriving == 0
    arrivals.handled()
    assert not arrivals.look()


def test_a_file_that_still_grows_is_left(tmp_path: Path) -> None:
    growing = tmp_path / "two.wav"
    write_wav(tmp_path / "one.wav")
    arrivals = watched(tmp_path)
    arrivals.look()
    for size in (10, 20, 30):
        growing.write_bytes(b"R" * size)
        assert arrivals.look()
        assert arrivals.is_arriving(growing.resolve())
    found = Discovery(arrivals.spec, is_arriving=arrivals.is_arriving).sources()
    assert [item.item_id for item in found] == ["one.wav"]
    arrivals.handled()
    assert arrivals.look(), "it has stopped growing"
    assert not arrivals.is_arriving(growing.resolve())


def test_a_file_whose_time_moves_is_left_though_its_size_stays(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "one.wav")
    arrivals = watched(tmp_path)
    arrivals.look()
    os.utime(path, ns=(1, 1))
    assert not arrivals.look()
    assert arrivals.look()


def test_a_change_to_what_was_handled_is_news_again(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "one.wav")
    arrivals = watched(tmp_path)
    arrivals.look()
    arrivals.look()
    arrivals.handled()
    write_wav(path, seconds=2.0)
    assert not arrivals.look()
    assert arrivals.look()


def test_what_came_after_the_look_is_left_for_the_next(tmp_path: Path) -> None:
    write_wav(tmp_path / "one.wav")
    arrivals = watched(tmp_path)
    arrivals.look()
    arrivals.look()
    late = write_wav(tmp_path / "late.wav")
    assert arrivals.is_arriving(late.resolve())


def test_only_what_a_run_would_read_is_looked_at(tmp_path: Path) -> None:
    write_wav(tmp_path / "in" / "a.wav")
    (tmp_path / "in" / "notes.md").write_text("x")
    write_wav(tmp_path / "in" / ".hidden.wav")
    write_wav(tmp_path / "in" / "drafts" / "b.wav")
    write_wav(tmp_path / "in" / "out" / "reply.wav")
    (tmp_path / "in" / "out" / "job.json").write_text("{}")
    table = tmp_path / "rows.csv"
    table.write_text("prompt\nhello\n")
    arrivals = watched(tmp_path / "in", table, exclude=("drafts/*",))
    arrivals.look()
    arrivals.look()
    assert sorted(path.name for path in arrivals.settled) == ["a.wav", "rows.csv"]


def test_an_input_that_is_gone_for_a_while_is_no_error(tmp_path: Path) -> None:
    arrivals = watched(tmp_path / "share")
    assert not arrivals.look()
    write_wav(tmp_path / "share" / "one.wav")
    arrivals.look()
    assert arrivals.look()


@pytest.mark.parametrize("given", ["-", "s3://bucket/in"])
def test_what_cannot_be_looked_at_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="cannot be watched"):
        watched(given)
