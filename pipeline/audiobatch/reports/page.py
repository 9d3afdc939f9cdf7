"""Write report.html: the job as a page that opens from disk, offline, in any browser.

One file holds style, script, charts and rows; only the recordings stay where they are, with relative links. Rows
are finished HTML, so that the page reads, searches and prints without its script; the script adds playing,
filters, sorting and marks. Jobs with more than 5000 rows go into `report.html`, `report-2.html`, ….

The template engine escapes every text of models and users. A content security policy lets the browser run the one
script whose hash it names and load media from the page's own folder, and forbids every connection.
"""

from __future__ import annotations

import base64
import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import jinja2

from audiobatch.answer_schema import REPLY_PREFIX
from audiobatch.reports.links import AUDIO_STAMP, INPUT_LINK, file_at, href, is_audio_path
from audiobatch.reports.manifest import escape_controls
from audiobatch.reports.staging import WrittenFile, draft_beside, replace_with
from audiobatch.reports.totals import check_names, duration_text, money_text, number, quantile
from audiobatch.reports.waveforms import BINS, HEIGHT, STEP, DrawWaveform, WaveformCache, waveform_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from audiobatch.reports.manifest import ManifestRow
    from audiobatch.reports.totals import Totals

#: Rows that a browser still scrolls and filters smoothly.
PAGE_ROWS = 5_000
GENERATOR = "audiobatch"
_PAGE_NAME = re.compile(r"report-(\d+)\.html")
#: The order of statuses: succeeded, then what needs attention, then pending.
STATUS_ORDER = ("succeeded", "failed", "refused", "unknown", "pending")
_MOST_BARS = 6
_BINS = 16
_LARGEST_QUANTILE = 0.99
_LONG_TEXT = 700
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenPages:
    """The pages that were written, `report.html` first, and what to tell the user, one sentence each."""

    paths: tuple[Path, ...]
    notes: tuple[str, ...]


def write_page(
    chunks: Iterable[Sequence[ManifestRow]],
    folder: Path,
    totals: Totals,
    *,
    title: str = "",
    job_key: str = "",
    draw: DrawWaveform | None = waveform_path,
    written_at: datetime | None = None,
    page_rows: int = PAGE_ROWS,
) -> WrittenPages:
    """Write `report.html`, and `report-2.html`, … for more rows, into the output folder.

    Args:
        chunks: manifest rows of raw values, in order. `input` and `audio_file` are relative to `folder`.
        folder: the output folder; links are relative to it.
        totals: of all these rows, counted beforehand.
        title: the job's name; the folder's where empty.
        job_key: under which the browser stores marks: the same for every page of this job and for no other.
        draw: draws the waveforms that the old page does not have; None for no waveforms.
        written_at: the time that the page shows; None: now.
        page_rows: rows in one page.

    Raises:
        StorageError: the folder cannot be written.
    """
    template = _environment().get_template("page.html.jinja")
    style, script = (_source(name) for name in ("page.css", "page.js"))
    count = max(1, -(-totals.rows // page_rows))
    names = ["report.html", *(f"report-{number}.html" for number in range(2, count + 1))]
    common = {
        "title": visible(title or folder.name),
        "generator": GENERATOR,
        "job_key": job_key or title or folder.name,
        "policy": _policy(style, script),
        "style": style,
        "script": script,
        "written_at": (written_at or datetime.now(UTC)).astimezone(UTC),
        "totals": totals,
        "sent": _span(totals),
        "tiles": _tiles(totals),
        "status_bars": status_bars(totals),
        "cost_bars": cost_bars(totals),
        "histograms": [
            (name, chart)
            for name, values in (("Reply length", totals.durations_s), ("Latency", totals.latencies_s))
            if (chart := histogram(values))
        ],
        "names": names,
        "view_box": f"0 0 {BINS * STEP} {HEIGHT}",
    }
    waveforms = WaveformCache(draw) if draw else None
    rows = (page_row(row, folder, waveforms) for chunk in chunks for row in chunk)
    paths: list[Path] = []
    notes: list[str] = []
    for page_number, name in enumerate(names, start=1):
        page = islice(rows, page_rows)
        if waveforms:
            waveforms.load(folder / name)
        values = {**common, "number": page_number, "first": (page_number - 1) * page_rows, "rows": page}
        written = _write_one(template, values, folder / name)
        paths.append(written.path)
        notes.extend(written.notes)
    _remove_pages_beyond(folder, count)
    return WrittenPages(paths=tuple(paths), notes=tuple(notes))


def _write_one(template: jinja2.Template, values: dict[str, object], path: Path) -> WrittenFile:
    with draft_beside(path) as draft:
        with draft.open("w", encoding="utf-8", newline="\n") as out:
            stream = template.stream(values)
            stream.enable_buffering(200)
            out.writelines(stream)
        return replace_with(draft, path)


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("audiobatch.reports", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _source(name: str) -> str:
    from importlib.resources import files

    return files("audiobatch.reports").joinpath("templates", name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Return the content security policy: script and style by hash, media from the page's own folder."""
    return (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "media-src 'self' file:; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _tiles(totals: Totals) -> list[tuple[str, str, str]]:
    """Return the figures at the top: name, amount, remark."""
    attention = sum(totals.statuses[name] for name in ("failed", "refused", "unknown"))
    done = totals.statuses["succeeded"]
    share = f"{100 * done / totals.rows:.1f} % of {totals.rows:,} rows" if totals.rows else "no rows"
    kinds = " · ".join(f"{count:,} {name}" for name, count in totals.error_types.most_common(2))
    flagged = " · ".join(
        f"{count:,} {name.replace('_', ' ')}" for name, count in totals.checks.most_common(2)
    )
    unpriced = f"{totals.rows_without_price:,} rows without a price" if totals.rows_without_price else ""
    each = money_text(totals.cost_usd / done) + " a reply" if done and totals.cost_usd else ""
    return [
        ("Succeeded", f"{done:,}", share),
        ("Need attention", f"{attention:,}", kinds or "nothing failed"),
        ("Checks raised", f"{sum(totals.checks.values()):,}", flagged or "nothing unusual heard"),
        ("Audio in", duration_text(totals.input_audio_s), f"{totals.items:,} items"),
        ("Audio out", duration_text(totals.output_audio_s), f"{len(totals.durations_s):,} replies"),
        ("Cost", money_text(totals.cost_usd), unpriced or each),
    ]


def _span(totals: Totals) -> str:
    """Return when requests were sent: `2026-03-01 12:00 to 12:40`."""
    first, last = totals.first_started, totals.last_finished
    if first is None or last is None:
        return ""
    start, end = (time.astimezone(UTC).strftime("%Y-%m-%d %H:%M") for time in (first, last))
    if start == end:
        return start
    return f"{start} to {end.removeprefix(start[:11])}"


def _remove_pages_beyond(folder: Path, count: int) -> None:
    """Delete pages of an earlier, larger job: their rows no longer exist."""
    for path in folder.glob("report-*.html"):
        match = _PAGE_NAME.fullmatch(path.name)
        if match and int(match[1]) > count and _is_own_page(path):
            with suppress(OSError):
                path.unlink()


def _is_own_page(path: Path) -> bool:
    """Whether audiobatch wrote the page."""
    with suppress(OSError), path.open("rb") as file:
        return f'name="generator" content="{GENERATOR}"'.encode() in file.read(4_000)
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A recording that the page plays."""

    kind: str
    url: str
    duration: str
    stamp: str
    path: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRow:
    """A manifest row as the template shows it: finished texts. `key` is the item's id as in `review.csv`."""

    key: str
    turn: int
    version: int
    name: str
    folder: str
    status: str
    prompt: str
    heard: str
    transcript: str
    is_long: bool
    message: str
    error_type: str
    checks: tuple[str, ...]
    clips: tuple[Clip, ...]
    transcript_url: str
    review: str
    note: str
    facts: tuple[tuple[str, str], ...]
    answers: tuple[tuple[str, str], ...]
    cost: float
    duration_s: float
    latency_s: float


def page_row(row: ManifestRow, folder: Path, waveforms: WaveformCache | None) -> PageRow:
    """Turn a manifest row into a row of a page in `folder`."""
    item_id = _text(row, "item_id")
    shown = visible(item_id)
    head, _, tail = shown.rpartition("/")
    transcript = visible(_text(row, "transcript"))
    return PageRow(
        key=escape_controls(item_id).replace("\r", "_x000D_"),  # HTML itself turns a CR into LF
        turn=int(number(row.get("turn")) or 1),
        version=int(number(row.get("version")) or 0),
        name=tail or shown,
        folder=head,
        status=_text(row, "status") or "pending",
        prompt=visible(_text(row, "prompt")),
        heard=visible(_text(row, "input_transcript")),
        transcript=transcript,
        is_long=len(transcript) > _LONG_TEXT,
        message=visible(_text(row, "error_message")),
        error_type=_text(row, "error_type"),
        checks=check_names(row.get("checks")),
        clips=tuple(_clips(row, folder, waveforms)),
        transcript_url=href(row.get("transcript_file")),
        review=_text(row, "review"),
        note=visible(_text(row, "review_note")),
        facts=tuple(_facts(row)),
        answers=tuple(_answers(row)),
        cost=number(row.get("cost_usd")) or 0.0,
        duration_s=number(row.get("audio_duration_s")) or 0.0,
        latency_s=number(row.get("latency_s")) or 0.0,
    )


def visible(text: str) -> str:
    """Replace control characters by the symbols that Unicode has for them."""
    return _CONTROLS.sub(_symbol, text)


def _symbol(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def _text(row: Mapping[str, object], column: str) -> str:
    value = row.get(column)
    return "" if value is None else str(value)


def _clips(row: ManifestRow, folder: Path, waveforms: WaveformCache | None) -> list[Clip]:
    clips = []
    for kind, column, length in (
        ("input", "input", "input_duration_s"),
        ("reply", "audio_file", "audio_duration_s"),
    ):
        path = row[INPUT_LINK] if kind == "input" and INPUT_LINK in row else row.get(column)
        later_turn = kind == "input" and row.get("turn") not in (None, 1)
        if not isinstance(path, str) or not is_audio_path(path) or later_turn:
            continue
        if row.get("status") == "refused" and kind == "input":
            continue  # it was refused because it is not a recording
        seconds = number(row.get(length))
        duration = "" if seconds is None else duration_text(seconds)
        url = href(path)
        known = str(row.get(AUDIO_STAMP) or "") if kind == "reply" else ""
        stamp, waveform = waveforms.waveform(url, file_at(folder, path), known) if waveforms else ("", None)
        clips.append(Clip(kind=kind, url=url, duration=duration, stamp=stamp, path=waveform))
    return clips


def _facts(row: ManifestRow) -> list[tuple[str, str]]:
    cost, latency_s = row.get("cost_usd"), number(row.get("latency_s"))
    facts = [
        ("voice", _text(row, "voice") if row.get("audio_file") else ""),
        ("deployment", _text(row, "deployment")),
        ("latency", "" if latency_s is None else duration_text(latency_s)),
        ("cost", "" if number(cost) is None else money_text(Decimal(str(cost)))),
        ("attempts", _text(row, "attempts") if (number(row.get("attempts")) or 0) > 1 else ""),
        ("version", _text(row, "version") if (number(row.get("version")) or 1) > 1 else ""),
    ]
    return [(name, visible(value)) for name, value in facts if value]


def _answers(row: ManifestRow) -> list[tuple[str, str]]:
    return [
        (visible(name.removeprefix(REPLY_PREFIX)), visible(str(value)))
        for name, value in row.items()
        if name.startswith(REPLY_PREFIX) and value not in (None, "")
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar: `share` is its length in per cent of the longest, `start` where a stacked one begins."""

    label: str
    value: str
    share: float
    start: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Counts of equal slices from `low` to `high`; the last one has all above it too (`open_end`)."""

    heights: tuple[float, ...]
    counts: tuple[int, ...]
    labels: tuple[str, ...]
    low: str
    high: str
    open_end: bool
    median: str


def status_bars(totals: Totals) -> list[Bar]:
    """Return the statuses as bars that together make 100 per cent."""
    bars, start = [], 0.0
    known = [name for name in STATUS_ORDER if totals.statuses[name]]
    for name in [*known, *sorted(set(totals.statuses) - set(STATUS_ORDER))]:
        share = 100 * totals.statuses[name] / max(1, totals.rows)
        bars.append(Bar(label=name, value=f"{totals.statuses[name]:,}", share=share, start=start))
        start += share
    return bars


def cost_bars(totals: Totals) -> list[Bar]:
    """Return the cost of each deployment, the highest first; the smallest ones together."""
    costs = sorted(totals.cost_by_deployment.items(), key=lambda pair: -pair[1])
    if len(costs) > _MOST_BARS:
        rest: Decimal = sum((cost for _, cost in costs[_MOST_BARS - 1 :]), start=costs[0][1] * 0)
        costs = [*costs[: _MOST_BARS - 1], (f"{len(costs) - _MOST_BARS + 1} others", rest)]
    most = max((cost for _, cost in costs), default=None) or 1
    return [
        Bar(label=name, value=money_text(cost), share=float(100 * cost / most))
        for name, cost in costs
        if cost
    ]


def histogram(values: Sequence[float]) -> Histogram | None:
    """Count values in seconds by equal slices; None without values."""
    high = quantile(values, _LARGEST_QUANTILE)
    median = quantile(values, 0.5)
    if high is None or median is None:
        return None
    top = max(values)
    low = min(values)
    if high <= low:
        high = top if top > low else low + 1
    width = (high - low) / _BINS
    counts = [0] * _BINS
    for value in values:
        counts[min(_BINS - 1, int((value - low) / width))] += 1
    most = max(counts)
    edges = [low + width * number for number in range(_BINS + 1)]
    return Histogram(
        heights=tuple(100 * count / most for count in counts),
        counts=tuple(counts),
        labels=tuple(f"{duration_text(start)} to {duration_text(end)}" for start, end in pairwise(edges)),
        low=duration_text(low),
        high=duration_text(high),
        open_end=top > high,
        median=duration_text(median),
    )
