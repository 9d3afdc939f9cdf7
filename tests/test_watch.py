"""`run --watch`: a real process, real files that arrive, real signals."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from audiobatch.calls.stats import RunSummary
from audiobatch.config.jobspec import JobSpec
from audiobatch.errors import FolderInUse
from audiobatch_emulator.process import EmulatorProcess
from audiobatch_flows.cli.watch import Watch
from tests import flows_prefect
from tests.running import audiobatch, azure, read_manifest, write_wav

posix = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")


class Watching:
    """`audiobatch run … --watch` in a process of its own."""

    def __init__(self, folder: Path, emulator: EmulatorProcess, *flags: str) -> None:
        self.inbox, self.out = folder / "inbox", folder / "out"
        self.inbox.mkdir()
        settings = azure(emulator)
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", "from audiobatch_flows.cli.main import main; main()", "run", self.inbox),
                *("--output", self.out, "--endpoint", settings["endpoint"], "--deployment", settings["deployment"]),
                *("--watch", "--watch-every", "0.3", *flags),
            ],
            env={**os.environ, "PREFECT_HOME": str(flows_prefect.home())},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def rows(self) -> dict[str, dict[str, str]]:
        try:
            return {row["item_id"]: row for row in read_manifest(self.out / "manifest.csv")}
        except FileNotFoundError:
            return {}

    def done(self, *names: str) -> bool:
        rows = self.rows()
        return all(rows.get(name, {}).get("status") == "succeeded" for name in names)

    def end(self, number: int) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err


@posix
def test_files_are_handled_as_they_arrive_and_a_growing_one_waits(
    tmp_path: Path, emulator: EmulatorProcess
) -> None:
    watching = Watching(tmp_path, emulator, "--no-prefect")
    try:
        write_wav(watching.inbox / "first.wav")
        assert flows_prefect.until(lambda: watching.done("first.wav"), 60)
        whole = write_wav(tmp_path / "whole.wav", seconds=3).read_bytes()
        growing = watching.inbox / "growing.wav"
        for part in range(12):
            growing.write_bytes(whole[: 1000 + 500 * part])
            assert "growing.wav" not in watching.rows()
            time.sleep(0.1)
        growing.write_bytes(whole)
        write_wav(watching.inbox / "second.wav")
        assert flows_prefect.until(lambda: watching.done("first.wav", "second.wav", "growing.wav"), 60)
    finally:
        code, out, err = watching.end(signal.SIGINT)
    assert code == 130
    assert "Watching" in err
    assert "The same command goes on later" in err
    assert "1 succeeded" in out
    assert len(emulator.journal()) == 3, "each was sent once, and whole"
    status = audiobatch("status", watching.out)
    assert "3" in status.stdout


@posix
def test_with_prefect_each_batch_is_a_run_on_the_same_embedded_server(
    tmp_path: Path, emulator: EmulatorProcess
) -> None:
    flows_prefect.pair()  # the home's database is migrated
    watching = Watching(tmp_path, emulator)
    try:
        for name in ("first.wav", "second.wav"):
            write_wav(watching.inbox / name)
            assert flows_prefect.until(lambda: watching.done(name), 90), watching.process.poll()  # noqa: B023
        assert flows_prefect.until(lambda: len(list((watching.out / "runs").glob("*.csv"))) == 2)
        assert flows_prefect.until(lambda: not holder_of(watching.out), 60)
    finally:
        code, out, err = watching.end(signal.SIGTERM)
    assert code == 143
    assert out.count("1 succeeded") == 2
    assert "Traceback" not in err


def holder_of(folder: Path) -> Any:
    from audiobatch.storage.lock import FolderLock

    return FolderLock.holder(folder)


def test_a_watch_that_no_run_can_help_ends_with_its_code(tmp_path: Path, emulator: EmulatorProcess) -> None:
    write_wav(tmp_path / "in" / "a.wav")
    azure(emulator)
    os.environ["AZURE_OPENAI_API_KEY"] = "wrong"
    ended = audiobatch(
        *("run", tmp_path / "in", "--output", tmp_path / "out", "--watch", "--watch-every", "0.2"),
        *("--no-prefect", "--endpoint", emulator.base_url, "--deployment", "gpt-audio-1.5"),
    )  # fmt: skip
    assert ended.returncode == 4, ended.stderr


def test_standard_input_cannot_be_watched(tmp_path: Path, emulator: EmulatorProcess) -> None:
    azure(emulator)
    ended = audiobatch(
        *("run", "-", "--output", tmp_path / "out", "--watch", "--no-prefect", "--endpoint", emulator.base_url),
        *("--deployment", "gpt-audio-1.5"),
        stdin="",
    )  # fmt: skip
    assert ended.returncode == 2
    assert "cannot be watched" in ended.stderr


def summary(**counts: Any) -> RunSummary:
    given = dict.fromkeys(("items", "sent", "succeeded", "failed", "refused", "unknown", "pending"), 0)
    return RunSummary(
        run_id="r", output=Path("out"), manifest=Path("out/manifest.csv"), skipped_done=0, cost_usd=Decimal(0),
        input_audio_s=0, output_audio_s=0, elapsed_s=0.1, **{"exit_code": 0, "stopped_by": None, **given, **counts},
    )  # fmt: skip


async def watch_with(tmp_path: Path, ends: Any, **settings: Any) -> Any:
    """A watch whose batches end as told; what it said, and its exit code."""
    write_wav(tmp_path / "a.wav")
    said: list[str] = []
    left = iter(ends)

    async def batch(_on_open: object) -> Any:
        end = next(left)
        if isinstance(end, Exception):
            raise end
        return end

    watch = Watch(JobSpec(inputs=(str(tmp_path),)), batch, said.append, look_every_s=0.01, **settings)
    code = await asyncio.wait_for(watch.until_ended(), 30)
    assert next(left, None) is None, "every batch was run"
    return code, said


async def test_a_folder_in_use_is_waited_for_and_said_once(tmp_path: Path) -> None:
    busy = FolderInUse("out is in use by run x. Wait until it ends, or …")
    code, said = await watch_with(tmp_path, [busy, busy, busy, summary(exit_code=6)])
    assert code == 6
    assert [text for text in said if text.startswith("Waiting")] == ["Waiting: out is in use by run x."]


async def test_what_failed_is_sent_again_after_a_while_without_any_news(tmp_path: Path) -> None:
    ends = [summary(exit_code=3, failed=2), summary(exit_code=5, pending=2), summary(exit_code=2)]
    code, said = await watch_with(tmp_path, ends, again_after_s=0.05)
    assert code == 2
    assert sum("left or failed" in text for text in said) == 2


async def test_a_batch_that_stops_at_its_time_ends_the_watch(tmp_path: Path) -> None:
    code, _ = await watch_with(tmp_path, [summary(exit_code=5, stopped_by="stop_at")])
    assert code == 5
