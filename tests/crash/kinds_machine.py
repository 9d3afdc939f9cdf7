"""Faults of the machine: too few file descriptors, full disks."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.crash import observing
from tests.crash.trials import Job, Kind

#: With fewer, a run says that they are too few, and sends nothing.
FEWEST = 64
#: Room for a plan of 24 items, with what is kept free and set aside.
DISK_MB = 128


class Descriptors(Kind):
    """A small limit from the start; or one that is drawn in below what is open, for a moment in mid-run."""

    name = "descriptors"

    def why_not(self) -> str:
        return "" if hasattr(resource, "prlimit") else "this system has no prlimit"

    def trial(self, number: int) -> None:
        job = Job(self, number, items=40, concurrency=40)
        if self.random.random() < 0.5:
            few = self.random.randint(FEWEST, 400)
            code = job.ended(
                job.start(prepare=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (few, few)))
            )
            self.score.seen["refused" if code == 2 else "few"] += 1
        else:
            self._draw_in(job)
        job.till_done()
        job.compare()

    def _draw_in(self, job: Job) -> None:
        child = job.start()
        for _ in range(self.random.randint(1, 3)):
            if not job.wait_for_calls(self.random.randint(1, 40), child):
                break
            # A run that ends meanwhile is right too.
            with contextlib.suppress(OSError):
                usual = resource.prlimit(child.pid, resource.RLIMIT_NOFILE)
                now = sum(1 for _ in Path(f"/proc/{child.pid}/fd").iterdir())
                less = max(4, now + self.random.randint(-20, 4))
                resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (less, usual[1]))
                time.sleep(self.random.uniform(0.1, 2.5))
                resource.prlimit(child.pid, resource.RLIMIT_NOFILE, usual)
        self.score.seen["drawn in"] += 1
        job.ended(child)


class Disk(Kind):
    """The disk of the output, the ledger or the spool is filled in mid-run, and has room again later."""

    name = "disk"

    def why_not(self) -> str:
        if not hasattr(os, "geteuid") or os.geteuid() != 0:
            return "only root may mount a small disk"
        with tempfile.TemporaryDirectory() as folder:
            try:
                with _mounted(Path(folder), 1):
                    return ""
            except subprocess.CalledProcessError as refused:
                return f"this machine lets nobody mount: {refused.stderr.decode(errors='replace').strip()}"

    def trial(self, number: int) -> None:
        job = Job(self, number)
        disk = job.folder / "disk"
        disk.mkdir()
        with _mounted(disk, DISK_MB):
            what = self._put_on(disk, job)
            child = job.start()
            if job.wait_for_calls(self.random.randint(1, 20), child):
                _fill(disk / "filler", left_bytes=self.random.choice([0, 0, 20_000, 200_000]))
            # Room comes back while the run still tries, or when it has given up.
            child.wait(self.random.choice([0.5, 3.0, 60.0, 60.0]))
            self._make_room(disk)
            self.score.seen[f"{what}: {job.ended(child)}"] += 1
            job.till_done()
            job.compare()
            if job.wrong:
                shutil.copytree(disk, job.folder / "disk-kept", symlinks=True)
        job.forget()

    def _put_on(self, disk: Path, job: Job) -> str:
        """Which of a job's places are on the small disk."""
        what = self.random.choice(["output", "ledger", "spool", "output+spool", "all"])
        if "output" in what or what == "all":
            job.output = disk / "out"
        if "spool" in what or what == "all":
            job.state = disk / "state"
        if what in ("ledger", "all"):
            ledger = disk / "books" / "ledger.db"
            ledger.parent.mkdir()
            job.words += ["--ledger", str(ledger)]
            job.look = lambda: observing.look_at_file(ledger)
        return what

    def _make_room(self, disk: Path) -> None:
        if self.random.random() < 0.5:
            (disk / "filler").unlink(missing_ok=True)
        else:
            size = f"remount,size={2 * DISK_MB}m"
            subprocess.run(["mount", "-o", size, disk], check=True, capture_output=True, timeout=30)


@contextlib.contextmanager
def _mounted(folder: Path, size_mb: int) -> Iterator[None]:
    """A disk of that size. Unmounted in any case, if need be behind who still uses it."""
    command: list[str | Path] = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", folder]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    try:
        yield
    finally:
        if subprocess.run(["umount", folder], capture_output=True, timeout=30).returncode:
            subprocess.run(["umount", "-l", folder], capture_output=True, timeout=30)


def _fill(path: Path, *, left_bytes: int) -> None:
    """Fill a disk up but for so many bytes."""
    with path.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                if file.write(b"\0" * size) < size:
                    size //= 2
            except OSError as full:
                if full.errno != errno.ENOSPC:
                    raise
                size //= 2
        file.truncate(max(0, file.tell() - left_bytes))
