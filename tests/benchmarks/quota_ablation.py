"""What each rule and constant of the rate learner is worth: switched off or changed in turn, in simulated time.

    python -m tests.benchmarks.quota_ablation                    the learner as it is, scenario by scenario
    python -m tests.benchmarks.quota_ablation rules              each rule off in turn
    python -m tests.benchmarks.quota_ablation constants          each constant halved and doubled
    python -m tests.benchmarks.quota_ablation constants HOLD     those whose name contains HOLD

A variant is the source of `audiobatch.limits.rate` with one piece of text replaced. A process of its own imports it
and runs the scenarios with each seed. A line of output names the change, averaged over all scenarios, and the
scenarios that change most:

    used       share of the quota that is used in the judged minutes, in percentage points
    refused    refused calls, as a factor (of two more in each scenario, so that none counts much)
    recovery   seconds until 90 % of the quota is used again after a change or a burst, or from the start
    same       scenarios in which nothing changes at all
"""

from __future__ import annotations

import argparse
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
SOURCE = TESTS.parent / "pipeline" / "audiobatch" / "limits" / "rate.py"
MODULE = "audiobatch.limits.rate"
#: Factors around 1, whose distance from 1 is halved and doubled, lie between these.
NEAR_ONE = (0.5, 1.6)
#: Scenarios that change by less than this are not named.
WORTH_NAMING = 0.5
NAMED = 4


@dataclass(frozen=True, slots=True)
class Figures:
    """What one scenario has come to, averaged over the seeds.

    Attributes:
        used: share of the quota.
        refused: calls.
        recovery_s: seconds until 90 % of the quota is used over ten seconds.
    """

    used: float
    refused: float
    recovery_s: float


Edit = tuple[str, str]
Scenario = Callable[[int], Figures]

#: Rule → edits that switch it off.
RULES: Mapping[str, tuple[Edit, ...]] = {
    "grow only while the rate is used": (
        (
            "idle = self._used * MINUTE_S / elapsed_s < IN_USE * rate if elapsed_s > 0 else True",
            "idle = False",
        ),
    ),
    "look beyond slowly": (
        ("(BEYOND if self._is_confirmed and rate < BEYOND_UNTIL * ceiling else GROWTH)", "GROWTH"),
    ),
    "… then faster": (("self._is_confirmed and rate < BEYOND_UNTIL * ceiling", "self._is_confirmed"),),
    "back from a low rate quickly": (("(QUICK if rate < FAR_BELOW * near else GROWTH)", "GROWTH"),),
    "recover after a deep cut": (
        (
            "self._probe.recovery, self._probe.recovers_to = RECOVERY, BELOW_CEILING * probe.ceiling_found",
            "pass",
        ),
    ),
    "doubt the first refusals": (("self._probe.recovery = DOUBT", "pass"),),
    "lower the ceiling at the low rate": (("LOWER_CEILING = 0.97", "LOWER_CEILING = 1.0"),),
    "deep cut": (
        ("MOST_REFUSED, MOST_REFUSED_SHARE = 4, 0.4", "MOST_REFUSED, MOST_REFUSED_SHARE = 10**9, 0.4"),
    ),
    "only waiting helps": (("if accepted == 0:", "if False:"),),
    "a confirmed ceiling": (
        ("self._is_confirmed = self._is_beyond(known) and is_same", "self._is_confirmed = False"),
    ),
    "late refusals": (("is_late = sent_s <= self._changed_at_s", "is_late = False"),),
    "stalls": (
        (
            "by_stall = self._is_kept(known) and self._stalls.explains(sent_s, now_s, named_s, known)",
            "by_stall = False",
        ),
    ),
    "random rejections": (
        ("return Finding.TOO_HIGH if self._helped else Finding.RANDOM", "return Finding.TOO_HIGH"),
    ),
    "a filled window is counted": (
        ("self._calls.filled_window(sent_s, named_s) if known is None else None", "None"),
    ),
    "deeper where it is not steady": (
        ("UNSTEADY_DEPTH = Depth(0.66, 0.68)", "UNSTEADY_DEPTH = Depth(0.88, 0.90)"),
    ),
    "longer each time": (("PROBE_S * 2.0 ** (self._low_rates - 1)", "PROBE_S"),),
    "few refusals are random": (("if are_few or self", "if self"),),
    "many refusals at the low rate": (("MANY, GREAT_SHARE = 4, 0.2", "MANY, GREAT_SHARE = 10**9, 0.2"),),
    "a still lower rate": (
        ("return Finding.TOO_HIGH if self._helped else Finding.RANDOM", "return Finding.RANDOM"),
    ),
    "a probe is over after many good calls": (
        ("self._was_clean = self._clean > CLEAN_CALLS and per_minute > self._low", "self._was_clean = False"),
    ),
    "a probe is over past its ceiling": (
        ("self._was_clean or per_minute > PAST * self.ceiling_found", "self._was_clean"),
    ),
    "a crowd of refusals at first": (("if self._is_crowd(now_s):", "if False:"),),
    "enough calls at first": (("_CALLS_AT_FIRST, _ALONE = 30, 60", "_CALLS_AT_FIRST, _ALONE = 0, 60"),),
    "the cumulative sum": (("if self._sum < ALARM:", "if False:"),),
}
#: Not tuned: what services do, and the bounds of arithmetic.
GIVEN = {"MINUTE_S", "WINDOWS_S", "_LEAST_PER_MINUTE"}


def constants() -> dict[str, tuple[Edit, ...]]:
    """Return each constant of the learner, halved and doubled; of a factor near 1, its distance from 1."""
    found: dict[str, tuple[Edit, ...]] = {}
    for line in re.finditer(
        r"^([A-Z_]+(?:, [A-Z_]+)*) = (?:Hold|Depth)?\(?([\d., ]+)\)?$", SOURCE.read_text(), re.MULTILINE
    ):
        names, values = line[1].split(", "), line[2].split(", ")
        if GIVEN & set(names):
            continue
        for index, value in enumerate(values):
            name = names[index] if len(names) == len(values) else f"{line[1]}[{index}]"
            for factor in (0.5, 2.0):
                changed = [*values[:index], _times(value, factor), *values[index + 1 :]]
                edit = line[0].replace(line[2], ", ".join(changed))
                if changed[index] != value:
                    found[f"{name} {value} → {changed[index]}"] = ((line[0] + "\n", edit + "\n"),)
    return found


def _times(value: str, factor: float) -> str:
    if "." not in value:
        return str(max(1, round(int(value) * factor)))
    number = float(value)
    near_one = NEAR_ONE[0] < number < NEAR_ONE[1] and number != 1.0
    return f"{1 + (number - 1) * factor if near_one else number * factor:.6g}"


def scenarios() -> dict[str, Scenario]:  # noqa: C901 - a function for each kind of scenario
    """Return all scenarios by name. They import the learner, which a variant has replaced before."""
    from audiobatch.limits.limiter import Limiter
    from tests.quota_simulation import Simulation, stall_spans

    def figures(simulation: Simulation, judged: tuple[float, float], quota: float, since_s: float) -> Figures:
        until_s = int(judged[1])
        starts = range(int(since_s), until_s - 9)
        reached = next((at for at in starts if simulation.share(at, at + 10, quota) >= 0.9), until_s)
        return Figures(
            used=simulation.share(*judged, quota),
            refused=sum(moment_s >= since_s for moment_s in simulation.refused_s),
            recovery_s=reached - since_s,
        )

    def hidden(rpm: int, until_s: float = 300, **service: Any) -> Scenario:
        """Nobody states the quota."""

        def run(seed: int) -> Figures:
            simulation = Simulation(Limiter(), rpm=rpm, hears=False, seed=seed, **service)
            simulation.run(until_s)
            return figures(simulation, (60, until_s), rpm, 0)

        return run

    def changed(
        rpm: int, part: float, at_s: float, after_s: float = 150, given: float | None = None
    ) -> Scenario:
        """The quota changes, and nobody says so."""

        def run(seed: int) -> Figures:
            begins_s = at_s + 3 * seed
            simulation = Simulation(Limiter(rpm=given), rpm=rpm, hears=False, seed=seed)
            simulation.run(begins_s)
            simulation.change(rpm=int(rpm * part))
            simulation.run(begins_s + after_s)
            judged = (begins_s + after_s - 60, begins_s + after_s)
            return figures(simulation, judged, rpm * part, begins_s + 10 * (part < 1))

        return run

    def given(limit: int, rpm: int | None, **service: Any) -> Scenario:
        """The user gives a limit."""

        def run(seed: int) -> Figures:
            simulation = Simulation(Limiter(rpm=limit), rpm=rpm, hears=False, seed=seed, **service)
            simulation.run(240)
            return figures(simulation, (60, 240), min(limit, rpm or limit), 0)

        return run

    def ample(random_share: float, wait_s: float | None) -> Scenario:
        """The quota is ample, and a share of calls is refused at random: 24 calls of 0.5 s make 2880 a minute."""

        def run(seed: int) -> Figures:
            service: dict[str, Any] = {"random_share": random_share, "random_wait_s": wait_s, "seed": seed}
            simulation = Simulation(Limiter(max_concurrency=24), **service)
            simulation.run(120)
            return figures(simulation, (30, 120), 2880 * (1 - random_share), 0)

        return run

    def burst(rpm: int | None, wait_s: float | None, until_s: float = 63) -> Scenario:
        """All calls are refused for a while."""

        def run(seed: int) -> Figures:
            simulation = Simulation(Limiter(max_concurrency=24), rpm=rpm, hears=False, seed=seed)
            simulation.burst(60, until_s, wait_s)
            simulation.run(130)
            return figures(simulation, (80, 130), simulation.share(40, 60, 1) or 1.0, until_s)

        return run

    def strangers(seed: int) -> Figures:
        """Others use half of the quota for a while."""
        simulation = Simulation(Limiter(), rpm=600, hears=False, seed=seed)
        simulation.strangers(90 + seed, 180, 300)
        simulation.run(300)
        return figures(simulation, (240, 300), 600, 180)

    return {
        **{f"hidden {rpm}": hidden(rpm, until_s) for rpm, until_s in ((20, 600), (60, 420), (600, 300))},
        "hidden 60, no wait named": hidden(60, 420, names_waits=False),
        "hidden 600, jitter": hidden(600, jitter_s=0.04),
        "hidden 600, 3 % random": hidden(600, random_share=0.03),
        "hidden 600, 10 % random": hidden(600, random_share=0.1, random_wait_s=1.0),
        "hidden 600, stalls": hidden(600, stalls=stall_spans(4, 0.03, 0.2, until_s=300)),
        **{f"600 × {part:g}": changed(600, part, 50) for part in (0.25, 0.5, 0.75, 0.9, 2.0)},
        "120 × 0.5": changed(120, 0.5, 120, 200),
        "60 × 4": changed(60, 4, 120, 240),
        "600 × 0.5, given": changed(600, 0.5, 50, given=600),
        "given 618 of 600": given(618, 600),
        "given 1200 of 600": given(1200, 600),
        "given 600, 3 % random": given(600, None, random_share=0.03, random_wait_s=1.0),
        **{f"{share:.0%} random": ample(share, None) for share in (0.01, 0.03, 0.1, 0.3)},
        "1% random, wait of 1 s": ample(0.01, 1.0),
        **{f"burst, wait of {wait_s} s": burst(None, wait_s) for wait_s in (None, 0.02, 1.0, 5.0)},
        **{f"burst at 600, wait of {wait_s} s": burst(600, wait_s) for wait_s in (None, 0.02, 1.0, 5.0)},
        "long burst at 600": burst(600, 1.0, 90),
        "others use half": strangers,
    }


def run_variant(edits: tuple[Edit, ...], seeds: tuple[int, ...]) -> dict[str, Figures]:
    """Import the learner with these edits, and run all scenarios."""
    source = SOURCE.read_text()
    for old, new in edits:
        if source.count(old) != 1:
            raise ValueError(f"the learner has {source.count(old)} times: {old}")
        source = source.replace(old, new)
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    exec(compile(source, SOURCE, "exec"), module.__dict__)
    found = {}
    for name, scenario in scenarios().items():
        runs = [scenario(seed) for seed in seeds]
        found[name] = Figures(
            used=mean(run.used for run in runs),
            refused=mean(run.refused for run in runs),
            recovery_s=mean(run.recovery_s for run in runs),
        )
    return found


def _run(task: tuple[str, tuple[Edit, ...], tuple[int, ...]]) -> tuple[str, dict[str, Figures]]:
    name, edits, seeds = task
    return name, run_variant(edits, seeds)


def compared(base: Mapping[str, Figures], found: Mapping[str, Figures]) -> str:
    """Return the line for one variant."""
    changes = []
    for name, before in base.items():
        after = found[name]
        used, recovery_s = 100 * (after.used - before.used), after.recovery_s - before.recovery_s
        refused = after.refused - before.refused
        weight = abs(used) + 10 * abs(refused) / (before.refused + 5) + abs(recovery_s) / 3
        changes.append(
            (weight, f"{name}: {used:+.1f}, {refused:+.0f} of {before.refused:.0f}, {recovery_s:+.0f} s")
        )
    changes.sort(reverse=True)
    same = sum(weight == 0 for weight, _ in changes)
    used = mean(100 * (found[name].used - before.used) for name, before in base.items())
    refused = mean((found[name].refused + 2) / (before.refused + 2) for name, before in base.items())
    recovery_s = mean(found[name].recovery_s - before.recovery_s for name, before in base.items())
    most = "; ".join(text for weight, text in changes[:NAMED] if weight > WORTH_NAMING)
    average = f"used {used:+.2f} · refused × {refused:.2f} · recovery {recovery_s:+.1f} s"
    return f"{average} · same {same}/{len(base)} | {most}"


def variants(kind: str, name: str) -> Iterator[tuple[str, tuple[Edit, ...]]]:
    """Yield the variants of this kind whose name contains the text."""
    for title, edits in (RULES if kind == "rules" else constants()).items():
        if name in title:
            yield title, edits


def main() -> None:
    """Run the variants that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "kind", nargs="?", choices=["rules", "constants"], help="default: the learner as it is"
    )
    parser.add_argument("name", nargs="?", default="", help="only variants whose name contains this")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each scenario")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    seeds = tuple(range(1, given.seeds + 1))
    with get_context("spawn").Pool(given.processes, maxtasksperchild=1) as pool:
        _, base = pool.apply(_run, [("as it is", (), seeds)])
        if given.kind is None:
            for name, figures in base.items():
                used, refused, recovery_s = 100 * figures.used, figures.refused, figures.recovery_s
                print(f"{name:32} used {used:5.1f} % · refused {refused:4.0f} · recovery {recovery_s:3.0f} s")
            return
        tasks = [(name, edits, seeds) for name, edits in variants(given.kind, given.name)]
        for name, found in pool.imap(_run, tasks):
            print(f"{name:40} {compared(base, found)}", flush=True)


if __name__ == "__main__":
    main()
