"""Kills: runs that get SIGKILL at random instants and at the fail points, or a signal that stops them.

Each job is so many prompts sent to a real emulator with faults on, killed on the way, and resumed until all is
done; then made again with another voice (`--redo`) under the same kills. After every kill, and at the end, the
ledger, the files, the manifest and the emulator's own journal of what was billed are compared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from audiobatch_emulator.process import EmulatorProcess
from tests.crash import children, failpoints, observing

#: Recoverable faults for about a quarter of the calls; what is refused or broken off passes later. Few refusals for
#: rate: from many, without a quota behind them, a run learns to go slowly, and this is about being killed.
FAULTS = [
    {"when": {"share": 0.01, "attempt_below": 3}, "do": {"status": 429, "headers": {"retry-after-ms": "30"}}},
    {"when": {"share": 0.05, "attempt_below": 3}, "do": {"status": 503, "headers": {"retry-after-ms": "30"}}},
    {"when": {"share": 0.08, "attempt_below": 1}, "do": {"reset": "before"}},
    {"when": {"share": 0.08, "attempt_below": 1}, "do": {"reset": "in"}},
    {"when": {"share": 0.04, "attempt_below": 1}, "do": {"reset": "after"}},
    {"do": {"latency_s": {"median": 0.12, "sigma": 0.6}}},
]
GIVE_UP_S = 300.0


@dataclass
class Totals:
    """What a campaign of kills has counted."""

    kills: Counter[str] = field(default_factory=Counter)
    jobs: int = 0
    runs: int = 0
    requests: int = 0
    billed: int = 0
    recorded: int = 0
    lost: int = 0
    paid_again: int = 0
    unannounced: int = 0
    most_unknown: int = 0
    unknown: int = 0
    missing: int = 0
    doubled: int = 0
    temporary: int = 0
    unverified: int = 0
    left_open_by_a_stop: int = 0
    troubles: list[str] = field(default_factory=list)

    def broken(self, concurrency: int) -> bool:
        return bool(
            self.lost + self.paid_again + self.unannounced + self.missing + self.doubled + self.temporary
            + self.unverified + self.left_open_by_a_stop + len(self.troubles)
        ) or self.most_unknown > concurrency  # fmt: skip


class Campaign:
    """Jobs that are killed and resumed until they are done, and compared."""

    def __init__(
        self,
        options: argparse.Namespace,
        emulator: EmulatorProcess,
        folder: Path,
        prefect: dict[str, str],
        ends_s: float,
    ) -> None:
        self.options = options
        self.emulator = emulator
        self.folder = folder
        self.random = random.Random(options.seed)
        self.totals = Totals()
        self.env = {
            "AZURE_OPENAI_ENDPOINT": emulator.base_url,
            "AZURE_OPENAI_API_KEY": emulator.api_key,
            "AZURE_OPENAI_DEPLOYMENT_NAME": "gpt-audio-1.5",
            "XDG_STATE_HOME": str(folder / "state"),
            **prefect,
        }
        # The steps of the write path in turn, so that each has its share of however few kills there are.
        self.points = itertools.cycle(self.random.sample(list(failpoints.POINTS), len(failpoints.POINTS)))
        self.ends_s = ends_s

    @property
    def kills_left(self) -> bool:
        enough = sum(self.totals.kills.values()) >= self.options.kills
        return not enough and time.monotonic() < self.ends_s

    def run(self) -> Totals:
        number = 0
        while self.kills_left:
            number += 1
            _Job(self, number).run()
        return self.totals


class _Job:
    """One folder, from nothing to all done, killed on the way as often as it takes."""

    def __init__(self, campaign: Campaign, number: int) -> None:
        self.of = campaign
        self.totals = campaign.totals
        self.output = campaign.folder / f"job-{number}"
        self.table = campaign.folder / f"prompts-{number}.jsonl"
        self.log = campaign.folder / f"job-{number}.log"
        self.texts = {f"p{n:04}": f"Job {number}: say number {n}." for n in range(campaign.options.items)}
        self.hashes = {item_id: observing.hash_of_prompt(text) for item_id, text in self.texts.items()}
        self.settled: dict[observing.Result, int] = {}
        self.before: set[observing.Result] = set()
        self.stage: tuple[str, ...] = ()

    def run(self) -> None:
        lines = [json.dumps({"id": item_id, "prompt": text}) for item_id, text in self.texts.items()]
        self.table.write_text("\n".join(lines) + "\n")
        self.totals.jobs += 1
        for stage in ((), ("--voice", "ash", "--redo")):
            self.stage = stage
            self.settled = {}
            self.before = observing.look(self.output).results
            self._until_done()
            self._compare_at_the_end()
            if not self.of.kills_left:
                break
        if not any(trouble.startswith(f"{self.output.name}:") for trouble in self.totals.troubles):
            shutil.rmtree(self.output)

    def _arguments(self, *, retry: bool) -> list[str]:
        common = ["--quiet"] if self.of.options.prefect else ["--no-prefect", "--quiet"]
        if retry:
            return ["retry", str(self.output), *common]
        concurrency = str(self.of.options.concurrency)
        settings = ["--max-concurrency", concurrency, "--max-failures", "100%"]
        return ["run", str(self.table), "--output", str(self.output), *common, *settings, *self.stage]

    def _until_done(self) -> None:
        retry = False
        for _ in range(300):
            self.totals.runs += 1
            how, code = self._one_run(retry=retry)
            self._compare()
            if code in (0, 3, 4) or how in ("finished", "late"):
                if code == 0 and self._all_done():
                    return
                if code not in (0, 3, 130, 143):
                    self._trouble(f"exit code {code}")
                    return
                # What is left had three calls with an unknown end, and is sent again only when asked for.
                retry = code in (0, 3) and not retry
        self._trouble("did not come to an end")

    def _one_run(self, *, retry: bool) -> tuple[str, int]:
        random, totals = self.of.random, self.totals
        how = "finished"
        if self.of.kills_left:
            signals = self.of.options.signals
            points = 0.0 if self.of.options.prefect else 0.5 - signals / 2
            how = random.choices(["instant", "point", "signal"], [1 - signals - points, points, signals])[0]
        point = self._point() if how == "point" else None
        child = children.Child(*self._arguments(retry=retry), log=self.log, env=self.of.env, point=point)
        if how == "instant":
            child.wait(random.uniform(0.02, self.of.options.span))
            if child.kill() != -signal.SIGKILL:
                return "late", child.code or 0
            totals.kills["random instant"] += 1
        elif how == "signal":
            child.wait(random.uniform(0.3, self.of.options.span))
            number = random.choice([signal.SIGINT, signal.SIGTERM])
            child.signal(number)
            code = child.wait(GIVE_UP_S)
            if code is None:
                child.kill()
                self._trouble(f"hung after {number.name}")
            elif code == 128 + number:
                totals.kills[number.name] += 1
        elif child.wait(GIVE_UP_S) is None:
            child.kill()
            self._trouble(f"hung ({how} {point})")
        elif child.code == -signal.SIGKILL and point:
            totals.kills[point[0]] += 1
        return how, child.code or 0

    def _point(self) -> tuple[str, int]:
        name = next(self.of.points)
        most = 1 if name in failpoints.ONCE_A_RUN else self._left()
        return name, int(self.of.random.triangular(1, most, 1)) if most > 1 else 1

    def _left(self) -> int:
        begun = self.output.joinpath("ledger.db").exists()
        return len(self.texts) - (len(observing.look(self.output).results - self.before) if begun else 0)

    def _all_done(self) -> bool:
        return self._left() == 0

    def _trouble(self, what: str) -> None:
        self.totals.troubles.append(f"{self.output.name}: {what} (see {self.log})")
        print("TROUBLE", self.totals.troubles[-1], file=sys.stderr, flush=True)

    # What must hold.

    def _compare(self) -> None:
        seen = observing.look(self.output)
        self.totals.most_unknown = max(self.totals.most_unknown, seen.open_calls)
        self.totals.unknown += seen.open_calls
        self.totals.left_open_by_a_stop += seen.open_after_the_end
        self._nothing_lost(seen)
        requests = observing.by_item(self.of.emulator.journal())
        for result in seen.results:
            if result not in self.settled:
                # Its calls are over: what the emulator gets for it from now on is paid for again.
                self.settled[result] = len(requests.get(self.hashes[result.item_id], []))
        for item_id, count in seen.attempts.items():
            if len(requests.get(self.hashes[item_id], [])) > count:
                self.totals.unannounced += 1
                self._trouble(f"{item_id} was sent more often than announced")

    def _nothing_lost(self, seen: observing.Seen) -> None:
        for result in self.settled:
            if result not in seen.results and result not in seen.earlier:
                self.totals.lost += 1
                self._trouble(f"{result.item_id} was recorded and is not any more")
        for result in seen.results | seen.earlier:
            if not observing.is_there(self.output, result):
                self.totals.lost += 1
                self._trouble(
                    f"{result.item_id} version {result.version}: its files are not what was recorded"
                )

    def _compare_at_the_end(self) -> None:
        totals = self.totals
        seen = observing.look(self.output)
        journal = self.of.emulator.settled_journal(0, timeout_s=30)
        requests = observing.by_item(journal)
        self._nothing_lost(seen)
        for result, count in self.settled.items():
            again = len(requests[self.hashes[result.item_id]]) - count
            if again and result in seen.results:  # else a redo has replaced it, which alone may send it again
                totals.paid_again += again
                self._trouble(f"{result.item_id}: {again} more requests after it was recorded")
        wanted: Counter[str] = Counter(recorded.item_id for recorded in seen.results | seen.earlier)
        for item_id, item_hash in self.hashes.items():
            billed = sum(record["billed"] for record in requests.get(item_hash, []))
            totals.billed += billed if not self.stage else 0
            totals.requests += len(requests.get(item_hash, [])) if not self.stage else 0
            if billed > wanted[item_id] + seen.unknown[item_id]:
                totals.paid_again += 1
                self._trouble(f"{item_id}: billed {billed} times")
        current = {result.item_id: result for result in seen.results}
        totals.recorded += len(current)
        totals.missing += len(self.texts) - len(current)
        rows = observing.manifest_rows(self.output)
        keys = Counter((row["item_id"], row["turn"]) for row in rows)
        totals.doubled += sum(count - 1 for count in keys.values())
        totals.missing += sum((item_id, "1") not in keys for item_id in self.texts)
        totals.temporary += observing.temporary_files(self.output)
        verify = children.Child("verify", self.output, log=self.log, env=self.of.env)
        if verify.wait(GIVE_UP_S) != 0:
            totals.unverified += 1
            self._trouble("verify found something wrong")


def table(totals: Totals, concurrency: int) -> str:
    """Format the totals as a table."""
    kills = sum(totals.kills.values())
    rows = [
        ("kills", kills, f"{totals.kills['random instant']} at random instants"),
        ("runs", totals.runs, f"of {totals.jobs} jobs"),
        ("requests that reached the service", totals.requests, f"{totals.billed} billed (first stages)"),
        ("results recorded", totals.recorded, ""),
        ("recorded, then lost", totals.lost, "must be 0"),
        ("recorded, then paid again", totals.paid_again, "must be 0"),
        ("sent without being announced", totals.unannounced, "must be 0"),
        ("most calls unknown after one kill", totals.most_unknown, f"at most {concurrency}"),
        ("calls unknown after all kills", totals.unknown, ""),
        ("calls left open by an orderly end", totals.left_open_by_a_stop, "must be 0"),
        ("items missing at the end", totals.missing, "must be 0"),
        ("rows doubled", totals.doubled, "must be 0"),
        ("temporary files left", totals.temporary, "must be 0"),
        ("folders that verify complains of", totals.unverified, "must be 0"),
        ("steps of the write path without a kill", len(failpoints.POINTS.keys() - totals.kills.keys()), ""),
    ]
    lines = [f"{name:<38} {count:>8}   {note}".rstrip() for name, count, note in rows]
    lines += [f"  killed: {name:<30} {count:>6}" for name, count in sorted(totals.kills.items())]
    return "\n".join([*lines, *(f"TROUBLE {text}" for text in totals.troubles[:20])])
