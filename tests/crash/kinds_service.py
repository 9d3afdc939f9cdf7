"""Faults of the service: bodies of every wrong kind, from `hostile.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.crash import observing
from tests.crash.trials import MOST_RUNS, Job, Kind

ROOT = Path(__file__).resolve().parents[2]
#: Of the calls that get a wrong answer.
SHARE = 0.6
#: An answer that the service's filter took has no body worth keeping.
NOTHING_TO_KEEP = {"empty", "filtered"}


class Service(Kind):
    """Each billed answer ends as a result, or as a failure with its body, or as a call with an unknown end."""

    name = "service"

    def trial(self, number: int) -> None:
        job = _HostileJob(self, number, items=40)
        journal = job.folder / "journal.jsonl"
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "tests.crash.hostile",
            journal,
            str(self.random.random()),
            str(SHARE),
        ]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as service:
            try:
                assert service.stdout is not None
                job.address = service.stdout.readline().strip()
                job.words += ["--provider", "openai", "--endpoint", job.address]
                job.till_nothing_is_bought()
                job.compare()
            finally:
                service.kill()


class _HostileJob(Job):
    address = ""

    @property
    def env(self) -> dict[str, str]:
        return {"OPENAI_API_KEY": "sk-none", "XDG_STATE_HOME": str(self.state)}

    def calls(self) -> list[dict[str, Any]]:
        path = self.folder / "journal.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def till_nothing_is_bought(self) -> None:
        """Run until a run has sent nothing; what failed for a reason that may pass is sent again until then."""
        for _ in range(MOST_RUNS):
            before = len(self.calls())
            code = self.ended(self.start())
            if len(self.calls()) == before:
                if code not in (0, 3):
                    self.trouble(f"exit code {code} of a run that sent nothing")
                return
        self.trouble(f"run {MOST_RUNS} still sent something")

    def compare(self) -> None:
        seen = self.look()
        results = Counter(result.item_id for result in seen.results)
        failures = {failed.item_id: failed for failed in seen.failures}
        calls: dict[str, list[dict[str, Any]]] = {}
        for call in self.calls():
            calls.setdefault(call["prompt"], []).append(call)
        statuses = {row["item_id"]: row["status"] for row in self.rows()}
        for item_id, text in self.texts.items():
            billed = [call["kind"] for call in calls.get(text, ()) if call["billed"]]
            self.score.billed += len(billed)
            failure = failures.get(item_id)
            kept = results[item_id] + (failure is not None and self._is_kept(failure, billed))
            story = f"{item_id}: {[call['kind'] for call in calls.get(text, ())]} {failure or ''}"
            if len(billed) > kept + seen.unknown[item_id]:
                self._unaccounted(len(billed) - kept - seen.unknown[item_id], story, failure)
            if len(calls.get(text, ())) > seen.attempts[item_id]:
                self.trouble(f"sent more often than announced: {story}")
            wanted = "succeeded" if results[item_id] else "failed" if failure else "unknown"
            if statuses.get(item_id) != wanted:
                self.trouble(f"{statuses.get(item_id)} in the manifest, {wanted} in the ledger: {story}")
        unknown = sum(seen.unknown.values())
        self.score.unknown += unknown
        self.score.seen["results"] += len(seen.results)
        self.score.seen["bodies kept"] += sum(
            observing.is_kept(self.output, failed) for failed in seen.failures
        )
        if seen.open_calls:
            self.trouble(f"{seen.open_calls} calls are open at the end")
        self.compare_files(seen)
        self.forget()

    def _is_kept(self, failure: observing.Failure, billed: list[str]) -> bool:
        return observing.is_kept(self.output, failure) or bool(NOTHING_TO_KEEP & set(billed[-1:]))

    def _unaccounted(self, count: int, story: str, failure: observing.Failure | None) -> None:
        """Of an item with a failure its body is missing; else it was bought more often than it is on record."""
        if failure is None:
            self.score.paid_again += count
        else:
            self.score.lost += count
        self.trouble(f"{count} billed and not on record: {story}")
