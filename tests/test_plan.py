"""The plan of a large folder: what the database alone says is done is what a look at every input would say."""

import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from audiobatch.config.jobspec import JobSpec
from audiobatch.errors import ErrorType
from audiobatch.ledger.ledger import Ledger
from audiobatch.model import Media, Outcome, Review, RowSettings, Source, SourceKind, Status
from audiobatch.planning import plan
from audiobatch.planning.items import build_item

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
JOBS: dict[str, dict[str, Any]] = {
    "one turn": {},
    "two turns": {"prompt": ("What is it about?", "Give it a title.")},
    "a template": {"prompt": ("What is {item_id} about?",)},
    "split, trimmed": {"channels": "split", "trim_silence": True},
}


def sources(seed: int) -> Iterator[Source]:
    """Recordings and prompts; some with columns or settings of their own, some refused, some not hashed."""
    chance = random.Random(seed)
    for number in range(400):
        recording = chance.random() < 0.6
        media = Media(container="wav", codec="pcm_s16le", duration_s=2.0, sample_rate_hz=8000, channels=1)
        yield Source(
            item_id=f"{number:03}{chance.choice(['.wav', '.wav#left', ''])}",
            kind=SourceKind.RECORDING if recording else SourceKind.PROMPT,
            position=number + 1,
            root="in",
            path=f"{number:03}.wav",
            text="" if recording else f"Say {number}.",
            sha256=chance.choice(["", "a" * 64, f"{number:064}"]),
            media=media if recording else None,
            refusal=chance.choice(["", "", "", "", "cut short"]),
            row=chance.choice([{}, {}, {}, {"guest": "Ana"}]),
            settings=chance.choice([RowSettings(), RowSettings(), RowSettings(voice="echo")]),
        )


def outcomes(source: Source, spec: JobSpec, seed: int) -> Iterator[Outcome]:
    """What may be on record of it: all turns, some, none; under these settings or others; of this input or not."""
    chance = random.Random(f"{seed} {source.item_id}")
    if chance.random() < 0.15:
        return
    for turn in build_item(source, spec).turns[: chance.choice([1, 2, 2])]:
        done = Outcome(
            item_id=source.item_id,
            turn=turn.number,
            fingerprint=turn.fingerprint,
            status=Status.SUCCEEDED,
            run_id="before",
            started_at=NOW,
            finished_at=NOW,
            input_sha256=source.sha256,
            settings_key=plan.settings_key(spec),
        )
        match chance.randrange(9):
            case 0:
                yield replace(done, status=Status.FAILED, error_type=ErrorType.REJECTED)
            case 1:
                yield replace(done, status=Status.FAILED, error_type=ErrorType.TIMED_OUT)
            case 2:
                yield replace(done, status=Status.UNKNOWN)
            case 3:
                yield replace(done, input_sha256="f" * 64, fingerprint="other")
            case 4 if spec.redo:
                yield replace(done, settings_key="other", fingerprint="other")
            case _:
                yield done


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("seed", range(3))
async def test_the_database_and_a_look_at_every_input_agree(
    job: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = JobSpec(inputs=("in",), output="out", redo=True, **JOBS[job])
    with closing(Ledger.open(tmp_path / "ledger.db")) as ledger:
        found = list(sources(seed))
        ledger.writer.put_sources(found, "now")
        for source in found:
            for outcome in outcomes(source, spec, seed):
                await ledger.writer.record_outcome(outcome)
        marks = random.Random(seed).sample([planned.item_id for planned in found], 90)
        said = ("ok", "redo", "reject")
        ledger.writer.put_reviews({(item, 1): Review(review=said[n % 3]) for n, item in enumerate(marks)})

        quick = plan.make_plan(ledger, spec, "now")
        for_certain = plan._surely_done(spec, None)
        assert (for_certain is None) == (job == "a template")
        if for_certain is not None:
            assert ledger.reader.count_unchanged("now", for_certain) > 5, "else this shows nothing"
        monkeypatch.setattr(plan, "_surely_done", lambda *_: None)
        assert plan.make_plan(ledger, spec, "now") == quick
