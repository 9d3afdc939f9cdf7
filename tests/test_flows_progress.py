"""The progress line: what it says in each phase, and how it is written to a terminal and to a file."""

import asyncio
import io
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from audiobatch.calls.stats import RunSummary, Snapshot
from audiobatch.config.jobspec import JobSpec
from audiobatch_flows import progress, summary_text
from tests import flows_engine


def moment(**changes: Any) -> Snapshot:
    return Snapshot(**{**vars(flows_engine.nothing_yet()), "phase": "sending", "total": 500, **changes})


def job(*moments: Snapshot, warnings: Sequence[str] = ()) -> Any:
    """A job whose snapshots are these, the last one for ever."""
    left = list(moments)
    return SimpleNamespace(
        snapshot=lambda: left.pop(0) if len(left) > 1 else left[0],
        warnings=list(warnings),
        spec=JobSpec(drain_timeout_s=20),
        output=Path("outputs/recordings"),
    )


def summary(**changes: Any) -> RunSummary:
    given = {
        "run_id": "r1",
        "output": Path("outputs/x"),
        "manifest": Path("outputs/x/manifest.csv"),
        "exit_code": 0,
        "items": 9,
        "sent": 9,
        "succeeded": 9,
        "failed": 0,
        "refused": 0,
        "unknown": 0,
        "pending": 0,
        "skipped_done": 0,
        "cost_usd": Decimal("1.5"),
        "input_audio_s": 90.0,
        "output_audio_s": 126.0,
        "elapsed_s": 63.0,
        "stopped_by": None,
        "input_tokens": 1000,
        "output_tokens": 234,
    }
    return RunSummary(**{**given, **changes})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_the_line_says_all_that_a_person_waits_for() -> None:
    now = moment(done=120, failed=2, rate_per_min=14.0, eta_s=1620.0, cost_usd=Decimal("1.2"), in_flight=16)
    assert progress.line(now) == (
        "120/500 done, 2 failed · 14.0/min · 27 min left · $1.20 · 16 calls in flight"
    )


def test_the_line_says_why_it_waits() -> None:
    text = progress.line(moment(waiting="deployment gpt-audio-1.5 asked for 12 s"))
    assert text.endswith("waiting: deployment gpt-audio-1.5 asked for 12 s")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"phase": "discovering", "total": 0}, "discovering inputs"),
        ({"phase": "discovering", "total": 12000}, "discovering: 12,000 inputs so far"),
        ({"phase": "draining", "in_flight": 1}, "0/500 done · 1 call in flight · stopping"),
        ({"phase": "reporting", "done": 500}, "500/500 done · writing reports"),
    ],
)
def test_each_phase_has_its_words(changes: dict[str, Any], words: str) -> None:
    assert progress.line(moment(**changes)) == words


def test_the_share_done_counts_every_end_and_no_refused_input() -> None:
    assert progress.percent(moment(total=10, done=3, failed=1, unknown=1, refused=40)) == 50.0
    assert progress.percent(moment(total=0)) == 0.0


async def test_on_a_terminal_one_line_changes_and_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "TERMINAL_EVERY_S", 0.01)
    stream = Terminal()
    async with progress.shown(job(moment(), moment(done=7), warnings=["no price is known"]), stream=stream):
        async with asyncio.timeout(20):  # the first line waits for the terminal library's import
            while "7/500 done" not in plain(stream.getvalue()):  # noqa: ASYNC110 - a stream tells nobody
                await asyncio.sleep(0.01)
    text = stream.getvalue()
    assert "Note: no price is known\n" in plain(text)
    assert plain(text).count("\n") <= 3


async def test_without_colour_no_colour_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    async with progress.shown(job(moment(), warnings=["look"]), stream=stream):
        await asyncio.sleep(0.05)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", stream.getvalue())


async def test_elsewhere_lines_come_rarer_and_rarer_and_never_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_FIRST_S", 0.02)
    stream = io.StringIO()
    states = [moment(done=n // 3) for n in range(60)]
    async with progress.shown(job(*states), stream=stream):
        await asyncio.sleep(0.5)
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 9
    assert len(set(lines)) == len(lines)
    assert "\x1b" not in stream.getvalue()


async def test_a_stop_is_said_at_once_and_then_no_oftener_than_all_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "PLAIN_FIRST_S", 0.1)
    stream = io.StringIO()
    states = [moment(phase="draining", done=n) for n in range(60)]
    async with progress.shown(job(*states), stream=stream):
        await asyncio.sleep(0.6)
    assert 1 <= len(stream.getvalue().splitlines()) <= 4


async def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    async with progress.shown(job(moment(), warnings=["look"]), quiet=True):
        await asyncio.sleep(0.05)
    assert capsys.readouterr() == ("", "")


async def test_a_warning_that_comes_last_is_shown_all_the_same() -> None:
    stream = io.StringIO()
    run = job(moment())
    async with progress.shown(run, stream=stream):
        await asyncio.sleep(0.05)
        run.warnings.append("3 symbolic links were not followed")
    assert stream.getvalue() == "Note: 3 symbolic links were not followed\n"


async def test_a_reader_that_is_gone_does_not_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_FIRST_S", 0.01)

    class Closed(io.StringIO):
        def write(self, text: str) -> NoReturn:
            raise BrokenPipeError

    async with progress.shown(job(moment(), moment(done=1), warnings=["look"]), stream=Closed()):
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("calls", "words"), [(1, "1 call in flight may take up to 20 s"), (0, "No call is in flight")]
)
def test_a_stop_says_what_is_in_flight_and_how_to_go_on(calls: int, words: str) -> None:
    text = progress.in_flight(job(moment(in_flight=calls)), "Ctrl-C")
    assert text.startswith(words)
    assert text.endswith("The same command goes on later; results so far: outputs/recordings")
    assert ("Ctrl-C again gives them up" in text) == bool(calls)


def test_the_closing_table_has_the_figures_and_whole_paths(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    deep = Path("outputs") / ("long" * 30) / "manifest.csv"
    progress.print_closing(summary(manifest=deep, failed=2, refused=1, skipped_done=4))
    out, err = capsys.readouterr()
    words = [line.split() for line in out.splitlines()]
    for row in (
        ["done", "9"],
        ["done", "before", "4"],
        ["failed", "2"],
        ["refused", "1"],
        ["tokens", "1,234"],
    ):
        assert row in words
    for row in (["audio", "in", "1.5", "min"], ["audio", "out", "2.1", "min"], ["cost", "$1.50"]):
        assert row in words
    assert ["time", "1", "min", "3", "s"] in words
    assert f"manifest  {deep}\n" in out
    assert err == ""


def test_the_headline_is_one_sentence() -> None:
    assert (
        summary_text.headline(summary(failed=1, pending=2))
        == "9 succeeded, 1 failed, 2 pending; $1.50 in 1 min 3 s"
    )


@pytest.mark.parametrize(
    ("cost", "text"),
    [
        (None, "cost unknown"),
        (Decimal("0.01234"), "$0.0123"),
        (Decimal(12), "$12.00"),
        (Decimal(0), "$0.00"),
    ],
)
def test_money_has_the_digits_that_mean_something(cost: Decimal | None, text: str) -> None:
    assert summary_text.money(cost) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.24, "4.2 s"), (59.97, "1 min 0 s"), (1643, "27 min"), (7500, "2 h 5 min")]
)
def test_durations_are_in_the_unit_a_person_would_use(seconds: float, text: str) -> None:
    assert summary_text.duration(seconds) == text
