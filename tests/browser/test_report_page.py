"""The page in a reviewer's browser: it plays, finds, marks and hands over, from disk, with the network off."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audiobatch.reports.page import write_page
from audiobatch.reports.review import RecordedMark, read_marks
from audiobatch.reports.totals import Totals
from audiobatch.reports.waveforms import waveform_path
from tests.browser.conftest import OpenPage, Visit
from tests.narrowing import present
from tests.reports_samples import chunks_of, make_recordings, sample_row

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</textarea><svg onload=alert(3)>",
    '=HYPERLINK("http://127.0.0.1:1")',
    "\x00\x1b[31m\u202e",
    "'=1+1",
    '-1+1,"x"\r\n@y',
    "_x0041_",
)


def make_page(folder: Path, rows: list[dict[str, Any]], **options: object) -> Path:
    totals = Totals()
    for _ in totals.count([rows]):
        pass
    options.setdefault("draw", functools.lru_cache(waveform_path))
    return write_page(chunks_of(rows), folder, totals, title="Calls", **options).paths[0]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [sample_row(n) for n in range(50)]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> Path:
    folder = tmp_path_factory.mktemp("job")
    make_recordings(folder)
    return make_page(folder, rows)


def saved_review(one: Visit, folder: Path) -> Path:
    with one.page.expect_download() as download:
        one.page.click("#export")
    assert download.value.suggested_filename == "review.csv"
    download.value.save_as(folder / "review.csv")
    return folder / "review.csv"


def playing(one: Visit) -> bool:
    is_playing: bool = one.page.evaluate(
        "() => { const a = document.getElementById('audio'); return !a.paused && !a.error; }"
    )
    return is_playing


def test_a_reply_plays_from_disk_and_its_picture_shows_how_far(visit: OpenPage, report: Path) -> None:
    one = visit(report)
    one.page.locator(".clip-reply .play").nth(1).click()
    one.until("document.getElementById('audio').currentTime > 0.3")
    assert playing(one)
    assert "call 00001.wav" in one.text("#p-name")
    heard = one.page.locator(".wave .heard").evaluate("picture => picture.style.clipPath")
    assert heard.startswith("inset(0")
    assert one.page.locator(".clip.playing").count() == 1
    one.page.locator(".clip-input .play").nth(0).click()
    one.until("document.getElementById('audio').currentTime > 0.1")
    assert "input" in one.text("#p-name")
    assert one.page.locator(".wave .heard").count() == 1


def test_a_click_into_the_picture_plays_from_there(visit: OpenPage, report: Path) -> None:
    one = visit(report)
    picture = one.page.locator(".clip-reply .wave").nth(3)
    box = picture.bounding_box()
    picture.click(position={"x": present(box)["width"] * 0.75, "y": 10})
    one.until(
        "(() => { const a = document.getElementById('audio'); return a.currentTime > 0.7 * a.duration; })()"
    )


def test_a_recording_that_is_gone_is_told_of_and_breaks_nothing(visit: OpenPage, tmp_path: Path) -> None:
    one = visit(make_page(tmp_path, [sample_row(0)]))
    one.page.locator(".clip-reply .play").click()
    one.until("document.getElementById('p-time').textContent.includes('cannot be played')")
    one.complaints[:] = [text for text in one.complaints if "ERR_FILE_NOT_FOUND" not in text]


def test_the_whole_review_can_be_done_from_the_keyboard(
    visit: OpenPage, report: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    one = visit(report)
    one.keys("j", "o", "j", "j", "r", "n")
    one.page.keyboard.type("too fast, joke r")
    one.keys("Escape", "k", "x", "j", "j", "Space")
    one.until("document.getElementById('audio').currentTime > 0")
    assert "call 00003.wav" in one.text("#p-name")
    one.keys("Space")
    assert not playing(one)
    known = {(str(row["item_id"]), 1): RecordedMark(version=int(row["version"] or 0)) for row in rows}
    read = read_marks(saved_review(one, tmp_path), known)
    assert read.refused == ()
    assert [(mark.item_id[-9:], mark.review, mark.note) for mark in read.marks] == [
        ("00000.wav", "ok", ""),
        ("00002.wav", "redo", "too fast, joke r"),
        ("00001.wav", "reject", ""),
    ]


def test_marking_again_takes_the_mark_off_and_the_file_says_so_of_one_that_was_on_record(
    visit: OpenPage, tmp_path: Path
) -> None:
    one = visit(make_page(tmp_path, [sample_row(0, review="ok", review_note="fine"), sample_row(1)]))
    assert one.text("#export") == "Save review.csv (1)"
    one.keys("j", "o", "j", "x", "x")
    known = {(str(sample_row(n)["item_id"]), 1): RecordedMark(version=1) for n in range(2)}
    (mark,) = read_marks(saved_review(one, tmp_path), known).marks
    assert (mark.review, mark.note) == ("", "fine")


def test_marks_are_still_there_when_the_page_is_opened_again_and_made_again(
    visit: OpenPage, tmp_path: Path
) -> None:
    rows = [sample_row(n) for n in range(4)]
    path = make_page(tmp_path, rows, job_key="job 1")
    one = visit(path)
    one.keys("j", "j", "r", "n")
    one.page.keyboard.type("slower")
    rows.insert(0, sample_row(9))  # a row came in before: marks go by id, not by place
    make_page(tmp_path, rows, job_key="job 1")
    one.page.reload()
    pressed = one.page.locator("li:has(.mark[aria-pressed=true])")
    assert [pressed.nth(n).get_attribute("data-id") for n in range(pressed.count())] == [rows[2]["item_id"]]
    assert pressed.locator(".note").input_value() == "slower"
    rows[2] |= {"version": 2}  # made again: the mark was on the one before
    make_page(tmp_path, rows, job_key="job 1")
    one.page.reload()
    assert one.page.locator(".mark[aria-pressed=true]").count() == 0


def test_rows_are_found_by_words_status_check_and_mark(
    visit: OpenPage, report: Path, rows: list[dict[str, Any]]
) -> None:
    one = visit(report)
    ids = [str(row["item_id"]) for row in rows]
    assert one.shown() == ids
    one.page.fill("#find", "PARCEL number")
    one.until("document.getElementById('shown').textContent.includes(' of ')")
    assert one.shown() == [row["item_id"] for row in rows if "parcel" in str(row["transcript"])]
    one.page.fill("#find", "")
    one.page.select_option("#f-status", "!")
    one.until("document.getElementById('shown').textContent.includes('3 of')")
    assert one.shown() == [row["item_id"] for row in rows if row["status"] != "succeeded"]
    one.page.select_option("#f-status", "")
    one.page.select_option("#f-check", "truncated")
    assert one.shown() == [row["item_id"] for row in rows if "truncated" in row["checks"]]
    one.page.select_option("#f-check", "")
    one.keys("Escape", "j", "r")
    one.page.select_option("#f-mark", "redo")
    assert one.shown() == ids[:1]
    one.page.select_option("#f-mark", "reject")
    assert one.shown() == []
    one.page.click("#clear")
    assert one.shown() == ids


def test_rows_are_sorted_and_put_back_into_input_order(
    visit: OpenPage, report: Path, rows: list[dict[str, Any]]
) -> None:
    one = visit(report)
    one.page.select_option("#sort", "cost")
    costs = {str(row["item_id"]): float(row["cost_usd"] or 0) for row in rows}
    assert [costs[item] for item in one.shown()] == sorted(costs.values(), reverse=True)
    one.page.select_option("#sort", "")
    assert one.shown() == [row["item_id"] for row in rows]


def test_hostile_texts_run_nothing_and_come_back_as_they_were(visit: OpenPage, tmp_path: Path) -> None:
    rows = [
        sample_row(n, item_id=text, prompt=text, transcript=text, error_message=text, deployment=text)
        for n, text in enumerate(HOSTILE)
    ]
    one = visit(make_page(tmp_path, rows, draw=None, job_key=HOSTILE[0]))
    one.page.evaluate(
        "document.addEventListener('securitypolicyviolation', event => console.log(event.violatedDirective))"
    )
    for _ in HOSTILE:
        one.keys("j", "r", "n")
        one.page.keyboard.insert_text("=1+1 <b>\x1b")
        one.keys("Escape")
    assert one.page.locator("#rows img, #rows script, #rows b b").count() == 0
    read = read_marks(saved_review(one, tmp_path), {(text, 1): RecordedMark(version=1) for text in HOSTILE})
    assert read.refused == ()
    assert [mark.item_id for mark in read.marks if mark.review == "redo"] == list(HOSTILE)
    assert {mark.note for mark in read.marks} == {"=1+1 <b>\x1b"}
    raw = (tmp_path / "review.csv").read_text(encoding="utf-8-sig")
    assert "\"'=HYPERLINK" in raw
    assert '"\'=1+1 <b>_x001B_"' in raw


def test_a_script_that_is_not_the_pages_own_is_stopped_by_the_policy(visit: OpenPage, report: Path) -> None:
    one = visit(report)
    one.page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.stolen = 1';"
        " document.body.append(s);"
        " const i = document.createElement('img'); i.src = 'file:///x.png'; document.body.append(i); }"
    )
    assert one.page.evaluate("window.stolen") is None
    assert any("Content Security Policy" in text for text in one.complaints)
    one.complaints.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 860, 1360])
def test_nothing_is_wider_than_the_window_and_text_stands_out_from_its_ground(
    visit: OpenPage, report: Path, width: int, scheme: str
) -> None:
    one = visit(report, viewport={"width": width, "height": 840}, color_scheme=scheme)
    assert one.page.evaluate("document.documentElement.scrollWidth") <= width
    faint = one.page.evaluate(CONTRASTS)
    assert faint == []


def test_the_theme_can_be_chosen_and_is_remembered(visit: OpenPage, report: Path) -> None:
    one = visit(report, color_scheme="light")
    one.page.click("#theme")
    one.page.reload()
    assert one.page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"


def test_every_control_has_a_name_and_changes_are_announced(visit: OpenPage, report: Path) -> None:
    one = visit(report)
    nameless = one.page.evaluate(
        "() => [...document.querySelectorAll('button, input, select, textarea')].filter(e =>"
        " !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)"
    )
    assert nameless == []
    one.keys("j", "r")
    assert one.text("#live") == "marked redo"
    assert one.page.evaluate("document.activeElement.matches('li.row.current')")
    assert (
        one.page.evaluate(
            "(() => { const h = document.activeElement.getAttribute('aria-labelledby');"
            " return document.getElementById(h).textContent; })()"
        )
        .strip()
        .endswith("call 00000.wav")
    )
    one.keys("?")
    assert one.page.locator("#help").evaluate("dialog => dialog.open")


def test_the_page_reads_without_its_script_too(visit: OpenPage, report: Path) -> None:
    one = visit(report, java_script_enabled=False)
    assert one.page.get_by_text("Two people greet each other").first.is_visible()
    assert one.page.locator(".tile-amount").first.is_visible()


def test_pages_of_a_large_job_lead_to_each_other_and_share_their_marks(
    visit: OpenPage, tmp_path: Path
) -> None:
    rows = [sample_row(n) for n in range(30)]
    one = visit(make_page(tmp_path, rows, draw=None, page_rows=10))
    one.keys("j", "o")
    one.page.locator("a[rel=next]").first.click()
    one.page.wait_for_url("**/report-2.html")
    one.keys("j", "x")
    one.page.locator(".go-page").first.select_option("./report-3.html")
    one.page.wait_for_url("**/report-3.html")
    assert one.text("#export") == "Save review.csv (2)"
    known = {(str(row["item_id"]), 1): RecordedMark(version=int(row["version"] or 0)) for row in rows}
    read = read_marks(saved_review(one, tmp_path), known)
    assert {mark.item_id for mark in read.marks} == {rows[0]["item_id"], rows[10]["item_id"]}


def test_five_thousand_rows_open_and_are_searched(
    visit: OpenPage, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    rows = [sample_row(n) for n in range(5000)]
    path = make_page(tmp_path, rows, draw=lambda _: "M1 12" + "v8m2 -8" * 99)
    one = visit(path)
    times = one.page.evaluate(TIMES)
    print(f"5000 rows, {path.stat().st_size / 1e6:.1f} MB: {json.dumps(times)} (ms)")
    record_property("times_ms", times)
    assert one.text("#shown") == "5,000 rows"
    assert times["found"] == sum("parcel" in str(row["transcript"]) for row in rows)


TIMES = """async () => {
  const frame = () => new Promise(done => requestAnimationFrame(done));
  const timed = async (act) => {
    const start = performance.now();
    act();
    await frame(); await frame();
    return Math.round(performance.now() - start);
  };
  const find = document.getElementById('find'), input = new Event('input');
  const search = (words) => timed(() => { find.value = words; find.dispatchEvent(input); });
  const paint = performance.getEntriesByName('first-contentful-paint')[0];
  const first = await search('parcel');
  const found = document.querySelectorAll('#rows > li:not([hidden])').length;
  const clear = await search('');
  const sort = document.getElementById('sort');
  return {
    first_paint: Math.round(paint.startTime),
    ready: Math.round(performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd),
    first_search: first, clear, found,
    search: await search('weather'),
    search_again: (await search(''), await search('station')),
    sort: (await search(''), await timed(() => { sort.value = 'cost'; sort.dispatchEvent(new Event('change')); })),
    mark: await timed(() => document.querySelectorAll('.mark')[9000].click()),
  };
}"""

# WCAG AA: 4.5 for text. Grounds are looked up the tree; transparent ones let the next shine through.
CONTRASTS = """() => {
  const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const colour = rgb(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] > .9) return colour;
    }
    return [255, 255, 255];
  };
  const faint = new Set();
  for (const e of document.querySelectorAll('body *')) {
    const worded = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!worded || !e.checkVisibility()) continue;
    if (e.closest('script, style, noscript, button:disabled, dialog, option')) continue;
    const a = light(rgb(getComputedStyle(e).color)), b = light(ground(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) faint.add(`${e.tagName}.${e.className} ${ratio.toFixed(2)}`);
  }
  return [...faint];
}"""
