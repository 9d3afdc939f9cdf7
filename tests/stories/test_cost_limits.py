"""No cost limit is ever passed, by what the service bills: in one run, over many, whatever replies come to."""

import json
from decimal import Decimal

import pytest
from emulator_process import EmulatorProcess
from running import azure, rows_of, run_job

from pipeline.prices import price_of

REALTIME = {"deployment": "gpt-realtime", "model": "gpt-realtime", "transport": "realtime"}


@pytest.fixture
def prompts(tmp_path):
    def make(count):
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps({"prompt": f"Say number {n}."}) + "\n" for n in range(count)))
        return {"inputs": [str(path)], "output": str(tmp_path / "out"), "reports": "none"}

    return make


def charged(emulator, model="gpt-audio-1.5"):
    """What the real service would have charged for what the journal has."""
    price = price_of(model)
    rates = {
        "input_text_tokens": price.text_in,
        "input_audio_tokens": price.audio_in,
        "output_text_tokens": price.text_out,
        "output_audio_tokens": price.audio_out,
    }
    billed = [call for call in emulator.journal() if call["billed"]]
    return (
        sum((rate * (call[kind] or 0) for call in billed for kind, rate in rates.items()), Decimal(0)) / 10**6
    )


def test_a_follow_up_counts_the_length_that_an_earlier_unbounded_reply_had(prompts):
    with EmulatorProcess("--speech", "tone", "--reply-seconds", "700") as emulator:
        job = {**prompts(1), **azure(emulator, max_concurrency=1)}
        job["turns"] = [{}, {"prompt": "Go on.", "modalities": ["text"]}]
        emulator.put_faults(
            {"when": {"text": "Go on"}, "do": {"status": 429, "headers": {"retry-after": "7200"}}}
        )
        assert run_job(**job).stopped_by == "parked"
        emulator.put_faults()
        before = charged(emulator)
        heard_again = Decimal(700 * 20 * 32) / 10**6
        short = run_job(**job, max_cost=str(heard_again - Decimal("0.02")))
        assert (short.exit_code, short.stopped_by, charged(emulator)) == (6, "max_cost", before)
        enough = run_job(**job, max_cost=str(heard_again + Decimal("0.30")))
        assert (enough.exit_code, enough.succeeded) == (0, 1)
        assert charged(emulator) - before <= heard_again + Decimal("0.30")


@pytest.mark.parametrize("cap", ["0.37", "0.35", "0.25"])
def test_a_session_that_hears_its_own_replies_again_passes_no_limit(prompts, cap):
    with EmulatorProcess("--speech", "tone", "--reply-seconds", "60") as emulator:
        job = {**prompts(1), **azure(emulator, max_concurrency=1, max_completion_tokens=600, **REALTIME)}
        job["turns"] = [{}, *[{"prompt": "Go on.", "modalities": ["text", "audio"]}] * 4]
        capped = run_job(**job, max_cost=cap)
        assert (capped.exit_code, capped.stopped_by) == (6, "max_cost")
        assert charged(emulator, "gpt-realtime") <= Decimal(cap)
        turns = [row for row in rows_of(capped) if row["status"] == "succeeded"]
        assert int(turns[-1]["input_audio_tokens"]) > 0, "it had heard what it said before"
