"""A power cut: what counts is the order of flushes, which no kill can show. Taken from the system's own calls."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from audiobatch_emulator.process import EmulatorProcess
from tests.needed import need

ROOT = Path(__file__).resolve().parents[2]
CALLS = "openat,write,pwrite64,sendto,sendmsg,fsync,fdatasync,rename,renameat,renameat2,mkdir"
LINE = re.compile(r"^\d+\s+(\w+)\((.*)\)\s+=\s+(-?\d+)")


class Trace:
    """The system calls of a run that matter, in order, as (what, path relative to the output folder)."""

    def __init__(self, text: str, folder: Path) -> None:
        self.events: list[tuple[str, str]] = []
        pending: dict[str, str] = {}
        for line in text.splitlines():
            whole = self._joined(line, pending)
            match = LINE.match(whole) if whole else None
            if match and not match[3].startswith("-"):
                self._take(match[1], match[2], folder)

    @staticmethod
    def _joined(line: str, pending: dict[str, str]) -> str:
        """A call that others interrupt stands in two lines; it has happened when its second has."""
        thread, _, rest = line.partition(" ")
        if rest.rstrip().endswith("<unfinished ...>"):
            pending[thread] = line.rstrip().removesuffix("<unfinished ...>").rstrip()
            return ""
        resumed = re.match(r"\s*<\.\.\. \w+ resumed>(.*)", rest)
        return pending.pop(thread, thread) + resumed[1] if resumed else line

    def _take(self, call: str, given: str, folder: Path) -> None:
        paths = [path.removesuffix(" (deleted)") for path in re.findall(r'[<"](/[^>"]*)[>"]', given)]
        inside = [os.path.relpath(path, folder) for path in paths if path.startswith(str(folder))]
        if call in ("sendto", "sendmsg", "write") and "POST " in given:
            self.events.append(("send", ""))
        elif call in ("write", "pwrite64") and inside:
            self.events.append(("write", inside[0]))
        elif call in ("fsync", "fdatasync") and inside:
            self.events.append(("flush", inside[0]))
        elif call.startswith("rename") and len(inside) == 2:
            self.events.append(("rename", f"{inside[0]} → {inside[1]}"))

    def first(self, what: str, path: str, after: int = -1) -> int:
        """Where it happens first after a place; fails where it does not."""
        for place, (event, where) in enumerate(self.events):
            if place > after and event == what and re.fullmatch(path, where):
                return place
        raise AssertionError(f"no {what} of {path} after {after}:\n" + "\n".join(map(str, self.events)))


def test_bytes_names_and_folders_are_on_disk_before_the_ledger_says_so(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    strace = need("strace")
    table = tmp_path / "prompts.jsonl"
    table.write_text(json.dumps({"id": "calls/anna", "prompt": "Say hello."}) + "\n")
    out = tmp_path / "out"
    environment = {
        **os.environ,
        "AZURE_OPENAI_ENDPOINT": emulator.base_url,
        "AZURE_OPENAI_API_KEY": emulator.api_key,
        "AZURE_OPENAI_DEPLOYMENT_NAME": "gpt-audio-1.5",
    }
    command: list[str | Path] = [
        sys.executable,
        "-c",
        "from audiobatch_flows.cli.main import main; main()",
        "run",
        table,
        "--output",
        out,
    ]
    traced = subprocess.run(
        [strace, *("-f", "-y", "-s", "64", "-o", tmp_path / "trace"), f"--trace={CALLS}", *command, "--no-prefect"],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    if "ptrace" in traced.stderr.lower() and traced.returncode:
        pytest.skip("this container may not trace")
    assert traced.returncode == 0, traced.stderr
    trace = Trace((tmp_path / "trace").read_text(errors="replace"), out)
    wal = r"ledger\.db-wal"

    # The intent, before the request leaves.
    sent = trace.first("send", "")
    written = max(
        n for n, (what, path) in enumerate(trace.events[:sent]) if (what, path) == ("write", "ledger.db-wal")
    )
    assert trace.first("flush", wal, after=written) < sent

    # Each file: bytes, name, folder; and the folders' own names, up to the output folder's parent.
    last = sent
    for top, ending in (("audio", "wav"), ("transcripts", "txt")):
        folder = f"{top}/calls"
        renamed = trace.first(
            "rename", rf"{folder}/\.audiobatch-tmp-\w+ → {folder}/anna\.{ending}", after=sent
        )
        temporary = trace.events[renamed][1].partition(" → ")[0]
        poured = trace.first("write", re.escape(temporary))
        assert poured < trace.first("flush", re.escape(temporary), after=poured) < renamed
        last = max(
            last,
            trace.first("flush", folder, after=renamed),
            trace.first("flush", top),
            trace.first("flush", r"\."),
        )

    # Then the outcome, flushed; and then the views.
    outcome = trace.first("write", wal, after=sent)
    assert outcome > last, "the outcome is written before its files are durable"
    recorded = trace.first("flush", wal, after=outcome)
    assert recorded < trace.first("rename", r"\S+ → manifest\.csv")

    # The ledger's own name is on disk as well.
    assert trace.first("flush", r"\.") < sent
