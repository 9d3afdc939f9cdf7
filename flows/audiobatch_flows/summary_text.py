"""The end of a run as text: one headline and a few rows, for the terminal and for Prefect's page alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from audiobatch.calls.stats import RunSummary

COUNTS = ("failed", "refused", "unknown", "pending")


def headline(summary: RunSummary) -> str:
    """Return one sentence: `48 succeeded, 1 failed, 1 refused; $0.42 in 1 min 3 s`."""
    parts = [f"{summary.succeeded} succeeded"]
    parts += [f"{count} {name}" for name in COUNTS if (count := getattr(summary, name))]
    if summary.skipped_done:
        parts.append(f"{summary.skipped_done} were done before")
    return f"{', '.join(parts)}; {money(summary.cost_usd)} in {duration(summary.elapsed_s)}"


def rows(summary: RunSummary) -> Iterator[tuple[str, str]]:
    """Yield name and value of all that a person wants to see first, without what is usually zero and is."""
    yield "done", f"{summary.succeeded:,}"
    if summary.skipped_done:
        yield "done before", f"{summary.skipped_done:,}"
    yield "failed", f"{summary.failed:,}"
    if summary.refused:
        yield "refused", f"{summary.refused:,}"
    if summary.unknown:
        yield "unknown", f"{summary.unknown:,} (sent, end not seen: perhaps billed)"
    if summary.pending:
        yield "pending", f"{summary.pending:,}"
    yield "audio in", f"{summary.input_audio_s / 60:.1f} min"
    yield "audio out", f"{summary.output_audio_s / 60:.1f} min"
    yield "tokens", f"{summary.tokens:,}"
    yield "cost", money(summary.cost_usd)
    if len(summary.by_deployment) > 1:
        for name, (calls, cost_usd) in sorted(summary.by_deployment.items()):
            yield f"cost at {name}", f"{money(cost_usd)} ({calls:,} calls)"
    yield "time", duration(summary.elapsed_s)


def counted(count: int, noun: str) -> str:
    """Return `1 item`, `1,250 items`."""
    return f"{count:,} {noun if count == 1 else noun + 's'}"


def money(cost_usd: object) -> str:
    """Return US dollars with as many digits as mean something; `cost unknown` for None."""
    if cost_usd is None:
        return "cost unknown"
    amount = float(str(cost_usd))
    return f"${amount:.2f}" if amount >= 1 or amount == 0 else f"${amount:.4f}"


def duration(seconds: float) -> str:
    """Return `4.2 s`, `3 min 20 s`, `27 min`, `2 h 5 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{minutes} min {rest} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
