"""What all kinds of faults share: a small job, runs of it, and what must hold of it when it has come to its end."""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from audiobatch_emulator.process import EmulatorProcess
from tests.crash import children, observing

#: A run that takes longer hangs.
GIVE_UP_S = 60.0
#: Runs of one job, until all of it is done.
MOST_RUNS = 6
#: Done, settings or storage, some failed, parked, stopped by a signal.
ORDERLY = (0, 2, 3, 5, 130, 143)
#: What Python says of an object that it could not clean up. No end of a run, though nothing that a user should see.
IGNORED = re.compile(r"Exception ignored in: .*\n(?:.+\n)*?Traceback \(most recent call last\)")


@dataclass
class Score:
    """What the trials of one kind came to."""

    trials: int = 0
    runs: int = 0
    billed: int = 0
    #: Calls that had an unknown end, whether their replies came home later or not.
    unknown: int = 0
    lost: int = 0
    paid_again: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    troubles: list[str] = field(default_factory=list)
    not_run: str = ""

    @property
    def broken(self) -> bool:
        return bool(self.lost + self.paid_again + len(self.troubles))


@dataclass
class Around:
    """What trials work with."""

    emulator: EmulatorProcess
    folder: Path
    random: random.Random
    keep: bool = False


class Kind:
    """One kind of fault: `trial` makes one job, disturbs a run of it, and lets it come to its end."""

    name = ""

    def __init__(self, around: Around) -> None:
        self.around = around
        self.random = around.random
        self.score = Score()
        self.started: list[children.Child] = []

    def why_not(self) -> str:
        """Why this machine cannot have such trials; empty: it can."""
        return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def trial(self, number: int) -> None:
        raise NotImplementedError

    def run(self, trials: int, ends_s: float) -> Score:
        """So many trials, none begun after `ends_s`."""
        self.score.not_run = self.why_not()
        if not self.score.not_run:
            with self:
                for number in range(1, trials + 1):
                    if time.monotonic() >= ends_s:
                        break
                    self.score.trials += 1
                    self._try(number)
        return self.score

    def _try(self, number: int) -> None:
        """One trial; nothing that it started is left running."""
        try:
            self.trial(number)
        except Exception as failed:
            self.score.troubles.append(f"{self.name}-{number}: the trial broke: {failed!r}")
            traceback.print_exc()
        finally:
            for child in self.started:
                child.kill()
            self.started.clear()


class Job:
    """One folder, from nothing to all done, in a folder of its own with its log."""

    def __init__(self, kind: Kind, number: int, *, items: int = 24, concurrency: int = 8) -> None:
        self.kind, self.score, self.emulator = kind, kind.score, kind.around.emulator
        self.name = f"{kind.name}-{number}"
        self.folder = kind.around.folder / self.name
        self.folder.mkdir(parents=True)
        self.output, self.state = self.folder / "out", self.folder / "state"
        self.log = self.folder / "log"
        self.table = self.folder / "prompts.jsonl"
        self.texts = {f"p{n:03}": f"Trial {self.name}: say number {n}." for n in range(items)}
        lines = [json.dumps({"id": item_id, "prompt": text}) for item_id, text in self.texts.items()]
        self.table.write_text("\n".join(lines) + "\n")
        self.words: list[str] = ["--max-concurrency", str(concurrency), "--max-failures", "100%"]
        self.look: Callable[[], observing.Seen] = lambda: observing.look(self.output)
        #: Calls that may be made again, each announced as one with an unknown end before.
        self.most_again = 0
        self.wrong = 0
        self.emulator.reset()
        self.emulator.put_faults({"do": {"latency_s": {"median": 0.25, "sigma": 0.5}}})

    @property
    def env(self) -> dict[str, str]:
        return {
            "AZURE_OPENAI_ENDPOINT": self.emulator.base_url,
            "AZURE_OPENAI_API_KEY": self.emulator.api_key,
            "AZURE_OPENAI_DEPLOYMENT_NAME": "gpt-audio-1.5",
            "XDG_STATE_HOME": str(self.state),
        }

    # Runs.

    def start(
        self,
        *,
        env: dict[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> children.Child:
        """Begin a run."""
        self.score.runs += 1
        words = ["run", str(self.table), "--output", str(self.output), "--no-prefect", "--quiet", *self.words]
        child = children.Child(*words, log=self.log, env={**self.env, **(env or {})}, prepare=prepare)
        self.kind.started.append(child)
        return child

    def ended(self, child: children.Child) -> int:
        """Wait for a run's end; its exit code."""
        code = child.wait(GIVE_UP_S)
        if code is None:
            self.trouble("a run hung")
            code = child.kill()
        elif code not in ORDERLY:
            self.trouble(f"exit code {code}")
        return code

    def wait_for_calls(self, count: int, child: children.Child) -> bool:
        """Until the service has had so many; False: the run ended before."""
        ends_s = time.monotonic() + GIVE_UP_S
        while child.poll() is None and time.monotonic() < ends_s:
            if len(self.emulator.journal()) >= count:
                return True
            time.sleep(0.02)
        return False

    def till_done(self, **how: Any) -> None:
        """Run it again and again, undisturbed, until all is done."""
        for _ in range(MOST_RUNS):
            if self.ended(self.start(**how)) == 0:
                return
        self.trouble(f"not done after {MOST_RUNS} more runs")

    # What must hold.

    def trouble(self, what: str) -> None:
        self.wrong += 1
        self.score.troubles.append(f"{self.name}: {what} (see {self.log})")
        print("TROUBLE", self.score.troubles[-1], file=sys.stderr, flush=True)

    def compare(self) -> None:
        """What the service billed, beside ledger, files and manifest; then forget the job, if all is right."""
        seen = self.look()
        journal = observing.by_item(self.emulator.settled_journal(0, timeout_s=30))
        results = Counter(result.item_id for result in seen.results)
        kept = results + Counter(result.item_id for result in seen.earlier)
        for item_id, text in self.texts.items():
            records = journal.get(observing.hash_of_prompt(text), [])
            billed = sum(record["billed"] for record in records)
            self.score.billed += billed
            if not results[item_id]:
                self.score.lost += bool(billed)
                self.trouble(f"{item_id}: billed {billed} times, and there is no result")
            elif billed > kept[item_id] + seen.unknown[item_id]:
                self.score.paid_again += billed - kept[item_id] - seen.unknown[item_id]
                self.trouble(f"{item_id}: billed {billed} times")
            if len(records) > seen.attempts[item_id]:
                self.trouble(f"{item_id} was sent more often than announced")
        self.count_unknown(seen)
        self.compare_files(seen)
        rows = Counter((row["item_id"], row["status"]) for row in self.rows())
        if rows != Counter((item_id, "succeeded") for item_id in self.texts):
            self.trouble(
                f"the manifest has {sum(rows.values())} rows, not one for each of {len(self.texts)} results"
            )
        self.forget()

    def count_unknown(self, seen: observing.Seen) -> None:
        unknown = sum(seen.unknown.values())
        self.score.unknown += unknown + len(seen.earlier)
        if seen.earlier:
            self.score.seen["came late, kept as versions"] += len(seen.earlier)
        if unknown + len(seen.earlier) > self.most_again:
            self.trouble(
                f"{unknown} calls have an unknown end and {len(seen.earlier)} replies came late: more than "
                f"{self.most_again}"
            )
        if seen.open_calls:
            self.trouble(f"{seen.open_calls} calls are open at the end")

    def compare_files(self, seen: observing.Seen) -> None:
        for result in seen.results | seen.earlier:
            if not observing.is_there(self.output, result):
                self.score.lost += 1
                self.trouble(f"{result.item_id}: its files are not what was recorded")
        if count := observing.temporary_files(self.output):
            self.trouble(f"{count} temporary files are left")
        if any(self.state.rglob("*.reply")):
            self.trouble("replies are left in the spool")
        verify = children.Child("verify", self.output, *self._ledger_words(), log=self.log, env=self.env)
        self.kind.started.append(verify)
        if verify.wait(GIVE_UP_S) != 0:
            self.trouble("verify found something wrong")
        said, ignored = IGNORED.subn("", self.log.read_text(errors="replace"))
        if ignored:
            self.score.seen["exceptions that Python ignored"] += ignored
        for sign in ("Traceback (most recent call last)", "internal error"):
            if sign in said:
                self.trouble(f"{sign!r} in what a run said")

    def rows(self) -> list[dict[str, str]]:
        try:
            return observing.manifest_rows(self.output)
        except OSError:
            return []

    def _ledger_words(self) -> list[str]:
        if "--ledger" not in self.words:
            return []
        at = self.words.index("--ledger")
        return self.words[at : at + 2]

    def forget(self) -> None:
        if not self.wrong and not self.kind.around.keep:
            shutil.rmtree(self.folder, ignore_errors=True)


def table(scores: dict[str, Score]) -> str:
    """A line for each kind, one for each that was not run, and what went wrong."""
    head = (
        f"{'kind':<12} {'trials':>6} {'runs':>6} {'billed':>7} {'unknown':>8} {'lost':>6} {'paid again':>11}"
    )
    lines = [head]
    for name, score in scores.items():
        if score.not_run:
            lines.append(f"{name:<12} not run: {score.not_run}")
            continue
        figures = f"{score.trials:>6} {score.runs:>6} {score.billed:>7} {score.unknown:>8} {score.lost:>6}"
        seen = ", ".join(f"{count} {what}" for what, count in sorted(score.seen.items()))
        lines.append(f"{name:<12} {figures} {score.paid_again:>11}   {seen}".rstrip())
    troubles = [trouble for score in scores.values() for trouble in score.troubles]
    return "\n".join([*lines, *(f"TROUBLE {text}" for text in troubles[:30])])
