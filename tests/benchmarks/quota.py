"""How well quotas are used: a job against an emulator whose quota it does not know, minute by minute.

    python -m tests.benchmarks.quota                    all scenarios, about half an hour
    python -m tests.benchmarks.quota hidden halved      some of them
    python -m tests.benchmarks.quota --minutes 1 hidden shorter

Figures come from the emulator's journal, not from the client: accepted calls of each minute against the quota,
refused calls, and episodes of refusals (groups that are more than two seconds apart).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import tempfile
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from audiobatch.calls import feedback
from audiobatch.execution.job import Job, run_shards
from audiobatch.stop import StopReason
from audiobatch_emulator.process import EmulatorProcess
from tests.running import spec_of

LATENCY_S = 0.5
FLAGS = ("--speech", "tone", "--reply-seconds", "1", "--latency", str(LATENCY_S))
#: Of a prompt of `PROMPT`'s length the emulator's token counter takes this much, plus what it assumes of the reply.
PROMPT = "Say the number {n:06d} aloud."
UNSTATED_MAXIMUM = 1000
EPISODE_GAP_S = 2.0
#: The run is told to stop a little before the last call's window ends.
END_S = 2.0


@dataclass
class Seen:
    """What the service saw of one run, by deployment where that matters; times in seconds from the first call."""

    calls: list[tuple[float, int, str]] = field(default_factory=list)
    summary: Any = None

    def accepted(self, from_s: float, to_s: float, deployment: str | None = None) -> int:
        return sum(
            1
            for at, status, name in self.calls
            if from_s <= at < to_s and status == 200 and deployment in {None, name}
        )

    def refused(self, from_s: float = 0.0, to_s: float = float("inf")) -> int:
        return sum(1 for at, status, _ in self.calls if from_s <= at < to_s and status == 429)

    def episodes(self) -> list[float]:
        """When each group of refusals began."""
        began: list[float] = []
        last = float("-inf")
        for at, status, _ in self.calls:
            if status == 429:
                if at - last > EPISODE_GAP_S:
                    began.append(at)
                last = at
        return began


async def run_for(
    emulator: EmulatorProcess,
    folder: Path,
    *,
    seconds: float,
    items: int,
    at: dict[float, Any] | None = None,
    deaf: bool = False,
    **settings: Any,
) -> Seen:
    """A job of so many prompts, stopped after so many seconds; `at`: what is done to the service, and when."""
    table = folder / "prompts.jsonl"
    table.write_text("".join(json.dumps({"prompt": PROMPT.format(n=n)}) + "\n" for n in range(items)))
    os.environ["AZURE_OPENAI_API_KEY"] = emulator.api_key
    spec = spec_of(
        inputs=(str(table),),
        output=str(folder / "out"),
        reports=(),
        **({} if "deployments" in settings else {"deployment": "gpt-audio-1.5"}),
        **{"endpoint": emulator.base_url, **settings},
    )
    with deafness() if deaf else contextlib.nullcontext():
        async with Job.open(spec) as job:
            plan = await job.prepare()

            async def timetable() -> None:
                begun = asyncio.get_running_loop().time()
                for moment, act in sorted((at or {}).items()):
                    await asyncio.sleep(begun + moment - asyncio.get_running_loop().time())
                    await asyncio.to_thread(act)
                await asyncio.sleep(begun + seconds - asyncio.get_running_loop().time())
                job.stop.ask(StopReason.STOP_AT)

            clock = asyncio.create_task(timetable())
            await run_shards(job, plan.shards, plan.shards_at_once)
            clock.cancel()
            summary = await job.finish()
    return seen_by(emulator, summary)


def seen_by(emulator: EmulatorProcess, summary: Any = None) -> Seen:
    records = emulator.journal()
    times = [datetime.fromisoformat(record["at"]).timestamp() for record in records]
    first = min(times, default=0.0)
    calls = sorted(
        (at - first, one["status"] or 0, one["deployment"] or "")
        for at, one in zip(times, records, strict=True)
    )
    return Seen(calls=calls, summary=summary)


@contextlib.contextmanager
def deafness() -> Any:
    """The client does not hear what headers say of limits; `Retry-After` it hears."""
    heard = feedback.CallFeedback._heard
    feedback.CallFeedback._heard = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        feedback.CallFeedback._heard = heard  # type: ignore[method-assign]


def say(name: str, **figures: object) -> dict[str, object]:
    print(
        name,
        "|",
        " · ".join(f"{key.replace('_', ' ')} {value}" for key, value in figures.items()),
        flush=True,
    )
    return {"name": name, **figures}


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def minutes_of(seen: Seen, minutes: int, per_minute: float) -> str:
    return ", ".join(percent(seen.accepted(60 * n, 60 * (n + 1)) / per_minute) for n in range(minutes))


def hidden(folder: Path, *, rpm: int, deaf: bool, minutes: float) -> dict[str, object]:
    """A quota of requests that nobody told."""
    with EmulatorProcess(*FLAGS, "--quota", f"gpt-audio-1.5=rpm:{rpm}") as emulator:
        items = int(rpm * minutes * 1.3) + 100
        seen = asyncio.run(run_for(emulator, folder, seconds=60 * minutes, items=items, deaf=deaf))
    end_s = 60 * minutes - END_S
    from_second = seen.accepted(60, end_s) * 60 / (rpm * (end_s - 60)) if minutes > 1 else 0.0
    late = seen.refused(60)
    return say(
        f"hidden {rpm} rpm, {'without' if deaf else 'with'} headers",
        each_minute=minutes_of(seen, int(minutes), rpm),
        from_second_minute=percent(from_second),
        refused=f"{seen.refused()} of {len(seen.calls)} ({percent(seen.refused() / len(seen.calls))})",
        of_these_after_first_minute=late,
        episodes=[round(episode, 1) for episode in seen.episodes()],
    )


def tokens(folder: Path, *, deaf: bool, minutes: float) -> dict[str, object]:
    """A quota of tokens that binds: the counter takes a thousand for each reply, whatever it will be."""
    tpm = 300_000
    each = UNSTATED_MAXIMUM + max(1, round(len(PROMPT.format(n=0)) / 4))
    with EmulatorProcess(*FLAGS, "--quota", f"gpt-audio-1.5=rpm:6000,tpm:{tpm}") as emulator:
        items = int(tpm / each * minutes * 1.4) + 100
        seen = asyncio.run(run_for(emulator, folder, seconds=60 * minutes, items=items, deaf=deaf))
    end_s = 60 * minutes - END_S
    used = seen.accepted(60, end_s) * each * 60 / (tpm * (end_s - 60)) if minutes > 1 else 0.0
    return say(
        f"hidden {tpm} tokens a minute, {'without' if deaf else 'with'} headers",
        each_minute=minutes_of(seen, int(minutes), tpm / each),
        from_second_minute=percent(used),
        refused=f"{seen.refused()} of {len(seen.calls)} ({percent(seen.refused() / len(seen.calls))})",
        episodes=[round(episode, 1) for episode in seen.episodes()],
    )


def changed(
    folder: Path, *, factor: float, deaf: bool, rpm: int = 600, before_s: float = 50.0
) -> dict[str, object]:
    """The quota is halved or doubled in mid-run, and nobody says so."""
    after_s = 130.0 if deaf and factor > 1 else 80.0
    now = int(rpm * factor)
    with EmulatorProcess(*FLAGS, "--quota", f"gpt-audio-1.5=rpm:{rpm}") as emulator:
        change = {before_s: lambda: emulator.put_quotas(**{"gpt-audio-1.5": {"rpm": now, "tpm": None}})}
        seconds = before_s + after_s
        seen = asyncio.run(
            run_for(
                emulator, folder, seconds=seconds, items=int(rpm * max(1, factor) * 5), at=change, deaf=deaf
            )
        )
    window_s = 10.0
    starts = [before_s + n for n in range(int(after_s - window_s))]
    shares = {start: seen.accepted(start, start + window_s) / (now * window_s / 60) for start in starts}
    reached = next(
        (start - before_s for start, share in shares.items() if share >= 0.9 and start > before_s + 1), None
    )
    episodes = [episode for episode in seen.episodes() if episode > before_s]
    gaps = [round(b - a, 1) for a, b in itertools.pairwise(episodes)]
    return say(
        f"{rpm} rpm, then {now}, {'without' if deaf else 'with'} headers",
        ninety_percent_after_s=reached,
        last_30_s=percent(seen.accepted(seconds - 30, seconds) / (now / 2)),
        refused=seen.refused(before_s),
        episodes_after=[round(episode - before_s, 1) for episode in episodes],
        gaps_s=gaps,
    )


def three(folder: Path, *, rpm: int = 600) -> dict[str, object]:
    """Three deployments; one dies in mid-run, one is throttled to a quarter."""
    names = ("east", "west", "north")
    flags = [part for name in names for part in ("--deployment", f"{name}=gpt-audio-1.5")]
    flags += [part for name in names for part in ("--quota", f"{name}=rpm:{rpm}")]
    with EmulatorProcess(*FLAGS, *flags) as emulator:
        at = {
            40.0: lambda: emulator.put_faults({"when": {"deployment": "west"}, "do": {"status": 404}}),
            41.0: lambda: emulator.put_quotas(north={"rpm": rpm // 4, "tpm": None}),
        }
        items = rpm * 6
        seen = asyncio.run(
            run_for(
                emulator,
                folder,
                seconds=140,
                items=items,
                at=at,
                deployments=[{"deployment": name} for name in names],
            )
        )
    left = rpm + rpm // 4
    summary = seen.summary
    rows = summary.succeeded + summary.failed + summary.unknown + summary.pending
    return say(
        "three deployments, one killed and one throttled",
        before=percent(seen.accepted(10, 40) / (3 * rpm / 2)),
        last_60_s=percent(seen.accepted(80, 140) / left),
        calls_to_the_dead_after=sum(1 for at, _, name in seen.calls if at > 41 and name == "west"),
        rows=f"{rows} of {items}, {summary.failed} failed",
        refused=seen.refused(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("hidden", "fast", "tokens", "halved", "doubled", "three")
    parser.add_argument("scenarios", nargs="*", choices=[*names, []], default=[])
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--deaf", choices=["yes", "no", "both"], default="both")
    given = parser.parse_args()
    hearing = {"yes": (True,), "no": (False,), "both": (False, True)}[given.deaf]
    for name in given.scenarios or names:
        for deaf in hearing:
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                if name == "hidden":
                    hidden(folder, rpm=600, deaf=deaf, minutes=given.minutes)
                elif name == "fast":
                    hidden(folder, rpm=3000, deaf=deaf, minutes=given.minutes)
                elif name == "tokens":
                    tokens(folder, deaf=deaf, minutes=given.minutes)
                elif name in ("halved", "doubled"):
                    changed(folder, factor=0.5 if name == "halved" else 2.0, deaf=deaf)
                elif not deaf:
                    three(folder)


if __name__ == "__main__":
    main()
