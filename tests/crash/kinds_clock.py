"""A clock that is set forward and back while a run works.

libfaketime has to be there when a process starts. So the trials are made by a process of its own, whose clock this
is; the runs are its forks, and what it starts otherwise has the machine's clock.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]

from audiobatch_emulator.process import EmulatorProcess  # noqa: E402
from tests.crash import children  # noqa: E402
from tests.crash.trials import Around, Job, Kind, Score  # noqa: E402

LIBRARY = "*/faketime/libfaketimeMT.so.1"
#: Beyond the end of the campaign: for its start, and the last trial's end.
PATIENCE_S = 180.0


class Clock(Kind):
    """The machine's clock is set by up to an hour, forward and back, as often as four times in a run."""

    name = "clock"

    def why_not(self) -> str:
        return "" if _library() else "libfaketime is not installed: apt-get install faketime"

    def run(self, trials: int, ends_s: float) -> Score:
        self.score.not_run = self.why_not()
        if self.score.not_run:
            return self.score
        clock = self.around.folder / "clock"
        set_clock(clock, 0)
        env = {
            **os.environ,
            "LD_PRELOAD": str(_library()),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        left_s = max(0.0, ends_s - time.monotonic())
        given = {
            "ready": self.around.emulator.ready,
            "folder": str(self.around.folder),
            "keep": self.around.keep,
            "seed": self.random.random(),
            "trials": trials,
            "seconds": left_s,
        }
        command = [sys.executable, "-m", "tests.crash.kinds_clock", json.dumps(given)]
        try:
            ended = subprocess.run(
                command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, timeout=left_s + PATIENCE_S
            )
            told = json.loads(ended.stdout.strip().splitlines()[-1])
            for name, value in told.items():
                getattr(self.score, name).update(value) if name == "seen" else setattr(
                    self.score, name, value
                )
        except (subprocess.TimeoutExpired, ValueError, IndexError) as failed:
            self.score.troubles.append(f"clock: the trials did not come to an end: {failed!r}")
        return self.score


class _Set(Clock):
    """The trials, in the process whose clock is set."""

    def trial(self, number: int) -> None:
        job = Job(self, number)
        clock = self.around.folder / "clock"
        set_clock(clock, 0)
        child = job.start()
        for _ in range(self.random.randint(1, 4)):
            if not job.wait_for_calls(self.random.randint(1, 23), child):
                break
            set_clock(clock, self.random.choice([-3600, 3600, self.random.randint(-3600, 3600)]))
            time.sleep(self.random.uniform(0.1, 0.8))
        if self.random.random() < 0.5:
            # So that the next run begins at another time than the one this one ended at.
            child.signal(self.random.choice([signal.SIGINT, signal.SIGTERM]))
        self.score.seen[f"ended {job.ended(child)}"] += 1
        if self.random.random() < 0.5:
            set_clock(clock, 0)
        job.till_done()
        job.compare()

    def run(self, trials: int, ends_s: float) -> Score:
        return Kind.run(self, trials, ends_s)


def _library() -> Path | None:
    return next(iter(sorted(Path("/usr/lib").glob(LIBRARY))), None)


def set_clock(clock: Path, ahead_s: int) -> None:
    """So many seconds before or behind the right time, for all processes that go by this file."""
    new = clock.with_name("clock-new")
    new.write_text(f"{ahead_s:+d}\n")
    new.replace(clock)


def _sleep(seconds: float) -> None:
    """In place of `time.sleep`: that waits until a moment, and libfaketime 0.9.10 takes it for one of its clock."""
    select.select((), (), (), max(0.0, seconds))


def main(given: dict[str, Any]) -> None:
    """Make the trials; print what they came to as JSON."""
    os.environ.pop("LD_PRELOAD")
    vars(time)["sleep"] = _sleep
    children.load()
    emulator = EmulatorProcess()
    emulator.ready = given["ready"]
    around = Around(emulator, Path(given["folder"]), random.Random(given["seed"]), bool(given["keep"]))
    score = _Set(around).run(int(given["trials"]), time.monotonic() + float(given["seconds"]))
    print(json.dumps(vars(score)))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
