"""report.html: the job as a page that opens from disk, with the network off, on anything with a browser.

One file holds style, script, charts and rows; only the recordings stay where they are, and links to them are
relative. Rows are finished HTML, so the page reads, searches and prints without its script too; the script
adds playing, filters, sorting and marks. Jobs with more than 5000 rows go into `report.html`, `report-2.html`, ….

Texts of models and users are escaped by the template engine, without exception; a content security policy
lets the browser run the one script whose hash it names, load media from the page's own place, and nothing
else: no connection to anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

import jinja2

from audiobatch.reports import charts
from audiobatch.reports.page_rows import page_row, visible
from audiobatch.reports.staging import draft_beside, place
from audiobatch.reports.totals import duration_text, money_text
from audiobatch.reports.waveforms import BINS, HEIGHT, STEP, Draw, Pictures, waveform_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from audiobatch.reports.manifest import ManifestRow
    from audiobatch.reports.totals import Totals

#: A browser keeps this many rows fluid.
PAGE_ROWS = 5_000
GENERATOR = "audiobatch"
_OUR_PAGE = re.compile(r"report-(\d+)\.html")


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenPages:
    """The pages written, the first of them `report.html`, and what a person should be told."""

    paths: tuple[Path, ...]
    notes: tuple[str, ...]


def write_page(
    chunks: Iterable[Sequence[ManifestRow]],
    folder: Path,
    totals: Totals,
    *,
    title: str = "",
    job_key: str = "",
    draw: Draw | None = waveform_path,
    made_at: datetime | None = None,
    page_rows: int = PAGE_ROWS,
) -> WrittenPages:
    """Write `report.html`, and `report-2.html`, … where one is not enough, into the output folder.

    Args:
        chunks: manifest rows of raw values, in order. `input` and `audio_file` are relative to `folder`.
        folder: the output folder; links are relative to it.
        totals: of all these rows, counted beforehand (`Totals.watching` around the CSV's rows does it).
        title: the job's name; the folder's where empty.
        job_key: under which the browser keeps marks; the same for every remake of this job and for no other.
        draw: waveform of a file, where the page before does not have it yet; None for no pictures.
        made_at: shown as the time of making.
        page_rows: rows a page.

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
        "made_at": (made_at or datetime.now(UTC)).astimezone(UTC),
        "totals": totals,
        "sent": _span(totals),
        "tiles": _tiles(totals),
        "status_bars": charts.status_bars(totals),
        "cost_bars": charts.cost_bars(totals),
        "histograms": [
            (name, chart)
            for name, values in (("Reply length", totals.durations_s), ("Latency", totals.latencies_s))
            if (chart := charts.histogram(values))
        ],
        "names": names,
        "view_box": f"0 0 {BINS * STEP} {HEIGHT}",
    }
    pictures = Pictures(draw) if draw else None
    rows = (page_row(row, folder, pictures) for chunk in chunks for row in chunk)
    paths: list[Path] = []
    notes: list[str] = []
    for number, name in enumerate(names, start=1):
        page = islice(rows, page_rows)
        if pictures:
            pictures.recall(folder / name)
        first = (number - 1) * page_rows
        written = _write_one(
            template, {**common, "number": number, "first": first, "rows": page}, folder / name
        )
        paths.append(written[0])
        notes.extend(written[1])
    _remove_pages_beyond(folder, count)
    return WrittenPages(paths=tuple(paths), notes=tuple(notes))


def _write_one(
    template: jinja2.Template, values: dict[str, object], path: Path
) -> tuple[Path, tuple[str, ...]]:
    with draft_beside(path) as draft:
        with draft.open("w", encoding="utf-8", newline="\n") as out:
            stream = template.stream(values)
            stream.enable_buffering(200)
            out.writelines(stream)
        placed = place(draft, path)
    return placed.path, placed.notes


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
    """The content security policy: our script and our style by hash, media from where the page is."""
    return (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "media-src 'self' file:; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _tiles(totals: Totals) -> list[tuple[str, str, str]]:
    """The numbers at the top: name, amount, remark."""
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
    """From when to when requests were sent: `2026-03-01 12:00 to 12:40`."""
    first, last = totals.first_started, totals.last_finished
    if first is None or last is None:
        return ""
    start, end = (moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M") for moment in (first, last))
    if start == end:
        return start
    return f"{start} to {end.removeprefix(start[:11])}"


def _remove_pages_beyond(folder: Path, count: int) -> None:
    """Pages of an earlier, larger job would show rows that are no more."""
    for path in folder.glob("report-*.html"):
        found = _OUR_PAGE.fullmatch(path.name)
        if found and int(found[1]) > count and _is_ours(path):
            with suppress(OSError):
                path.unlink()


def _is_ours(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return f'name="generator" content="{GENERATOR}"'.encode() in file.read(4_000)
    return False
