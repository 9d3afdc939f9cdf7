"""Running jobs in tests: the engine in this process, or the command line in a process of its own."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from audiobatch.calls.stats import RunSummary
from audiobatch.config.jobspec import JobSpec
from audiobatch.execution.job import Job, run_shards
from audiobatch.planning.plan import Retry
from audiobatch_emulator.process import EmulatorProcess
from tests.narrowing import local

ROOT = Path(__file__).resolve().parent.parent


def azure(emulator: EmulatorProcess, **settings: Any) -> dict[str, Any]:
    """JobSpec fields for the emulator, taken for an Azure resource with a key."""
    os.environ["AZURE_OPENAI_API_KEY"] = emulator.api_key
    return {"endpoint": emulator.base_url, "deployment": "gpt-audio-1.5", **settings}


def spec_of(**settings: Any) -> JobSpec:
    """Return the job specification of settings as a user writes them: pydantic converts them."""
    return JobSpec(**settings)


def run_job(
    *, retry: Retry | None = None, on_open: Callable[[Job], object] | None = None, **settings: Any
) -> RunSummary:
    """A whole job in this process, without Prefect."""

    async def whole() -> RunSummary:
        spec = spec_of(**settings)
        async with Job.open(spec, retry=retry) as job:
            if on_open is not None:
                on_open(job)
            plan = await job.prepare()
            await run_shards(job, plan.shards, plan.shards_at_once)
            return await job.finish()

    return asyncio.run(whole())


def audiobatch(
    *arguments: str | Path,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """The command line, as a user has it."""
    return subprocess.run(
        [sys.executable, "-c", "from audiobatch_flows.cli.main import main; main()", *map(str, arguments)],
        env={**os.environ, "COLUMNS": "200", **(env or {})},
        cwd=cwd or ROOT,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )


def rows_of(summary: RunSummary) -> list[dict[str, str]]:
    """The manifest's rows."""
    return read_manifest(local(summary.manifest))


def read_manifest(path: Path) -> list[dict[str, str]]:
    """Read a manifest's rows."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def write_wav(path: Path, *, seconds: float = 1.0, pitch_hz: float = 220.0, rate_hz: int = 16_000) -> Path:
    """A recording: a tone that swells and fades like a voice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(int(seconds * rate_hz)) / rate_hz
    swell = 0.3 * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * times))
    samples = (swell * np.sin(2 * np.pi * pitch_hz * times) * 32767).astype("<i2")
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate_hz)
        out.writeframes(samples.tobytes())
    return path


def last_json(text: str) -> dict[str, Any]:
    """The summary that `--json` prints last."""
    found: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return found
