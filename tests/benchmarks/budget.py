"""Failing fast and cost limits, in figures: a wrong key, tokens that expire, a cap with 64 calls in flight.

python -m tests.benchmarks.budget [key] [expiry] [cost] [three]
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

from audiobatch.config.prices import price_of  # noqa: E402
from audiobatch_emulator.process import EmulatorProcess  # noqa: E402


def prompts(folder: Path, count: int) -> Path:
    table = folder / "prompts.jsonl"
    table.write_text("".join(json.dumps({"prompt": f"Say the number {n}."}) + "\n" for n in range(count)))
    return table


def audiobatch(*arguments: object, env: dict[str, str]) -> tuple[float, subprocess.CompletedProcess[str]]:
    """The command line as a user has it, with its modules compiled by an earlier run, and how long it took."""
    command = [
        sys.executable,
        "-c",
        "from audiobatch_flows.cli.main import main; main()",
        *map(str, arguments),
        "--no-prefect",
    ]
    begun_s = time.monotonic()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AZURE_", "OPENAI_"))}
    ended = subprocess.run(
        [*command, "--json", "-q"],
        env={**clean, "PYTHONDONTWRITEBYTECODE": "", **env},
        capture_output=True,
        text=True,
        check=False,
    )
    return time.monotonic() - begun_s, ended


def cpu_of_children_s() -> float:
    """CPU that ended children have taken: what a wall clock says on a busy machine means little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def key(folder: Path) -> None:
    """A wrong key and a thousand items."""
    for time_of in ("first", "second"):
        with EmulatorProcess("--speech", "tone") as emulator:
            before_s = cpu_of_children_s()
            took_s, ended = audiobatch(
                *("run", prompts(folder, 1000), "--output", folder / time_of, "--reports", "none"),
                *("--endpoint", emulator.base_url, "--deployment", "gpt-audio-1.5"),
                env={"AZURE_OPENAI_API_KEY": "wrong", "PYTHONPYCACHEPREFIX": str(folder / "compiled")},
            )
            cpu_s = cpu_of_children_s() - before_s
            print(
                f"wrong key, 1000 items, {time_of} run ever | exit {ended.returncode} in {took_s:.1f} s "
                f"({cpu_s:.1f} s of CPU; the machine's load is {os.getloadavg()[0]:.0f}) · "
                f"calls {len(emulator.journal())}",
                flush=True,
            )


def expiry(folder: Path) -> None:
    """Tokens that live 20 s, a run of about a minute."""
    with EmulatorProcess("--speech", "tone", "--token-life", "20", "--latency", "0.5") as emulator:
        env = {**emulator.identity_env, "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential"}
        took_s, ended = audiobatch(
            *(
                "run",
                prompts(folder, 800),
                "--output",
                folder / "out",
                "--reports",
                "none",
                "--auth",
                "entra",
            ),
            *("--endpoint", emulator.base_url, "--deployment", "gpt-audio-1.5", "--rpm", "900"),
            env=env,
        )
        found = json.loads(ended.stdout.splitlines()[-1])
        refused = sum(call["status"] == 401 for call in emulator.journal())
    print(
        f"tokens of 20 s, {took_s:.0f} s | exit {ended.returncode} · succeeded {found['succeeded']} of 800 · "
        f"failed {found['failed']} · calls with a refused token {refused}"
    )


def cost(folder: Path) -> None:
    """A cap of 5 dollars, 64 in flight, replies three times as long as expected."""
    with EmulatorProcess("--speech", "tone", "--reply-seconds", "36", "--latency", "0.2") as emulator:
        took_s, ended = audiobatch(
            *("run", prompts(folder, 400), "--output", folder / "out", "--reports", "none"),
            *("--endpoint", emulator.base_url, "--deployment", "gpt-audio-1.5", "--max-concurrency", "64"),
            *("--max-cost", "5", "--max-tokens", "1000"),
            env={"AZURE_OPENAI_API_KEY": emulator.api_key},
        )
        spent = charged(emulator.journal())
        most = most_at_once(emulator.journal())
    print(
        f"--max-cost 5, 64 in flight | exit {ended.returncode} in {took_s:.0f} s · charged ${spent:.4f} · "
        f"overshoot ${max(Decimal(0), spent - 5):.4f} · left ${5 - spent:.4f} · most at once {most}"
    )


def three(folder: Path) -> None:
    """Three deployments with a wrong key each: one call each."""
    names = ("gpt-audio-1.5", "gpt-audio", "gpt-4o-audio-preview")
    with EmulatorProcess("--speech", "tone") as emulator:
        job = folder / "job.toml"
        entries = "".join(f'[[deployments]]\ndeployment = "{name}"\n' for name in names)
        table = prompts(folder, 1000)
        job.write_text(
            f'inputs = ["{table}"]\nendpoint = "{emulator.base_url}"\nmodel = "gpt-audio-1.5"\n{entries}'
        )
        took_s, ended = audiobatch(
            *("run", "--job", job, "--output", folder / "out", "--reports", "none"),
            env={"AZURE_OPENAI_API_KEY": "wrong"},
        )
        calls = Counter(call["deployment"] for call in emulator.journal())
    print(f"wrong key, three deployments | exit {ended.returncode} in {took_s:.1f} s · calls {dict(calls)}")


def charged(journal: list[dict[str, Any]]) -> Decimal:
    """What the real service would have charged."""
    price = price_of("gpt-audio-1.5")
    assert price is not None
    rates = {
        "input_text_tokens": price.text_in,
        "input_audio_tokens": price.audio_in,
        "output_text_tokens": price.text_out,
        "output_audio_tokens": price.audio_out,
    }
    billed = [call for call in journal if call["billed"]]
    return (
        sum((rate * (one[kind] or 0) for one in billed for kind, rate in rates.items()), Decimal(0))
        / 1_000_000
    )


def most_at_once(journal: list[dict[str, Any]]) -> int:
    """Calls that were in flight together at most."""
    moments = sorted([(call["at"], 1) for call in journal] + [(call["finished_at"], -1) for call in journal])
    most = now = 0
    for _, step in moments:
        now += step
        most = max(most, now)
    return most


def main() -> None:
    scenarios = {"key": key, "three": three, "expiry": expiry, "cost": cost}
    for name in sys.argv[1:] or scenarios:
        with tempfile.TemporaryDirectory() as folder:
            scenarios[name](Path(folder))


if __name__ == "__main__":
    main()
