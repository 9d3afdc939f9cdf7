"""report.html as a file; what a browser does with it is tested in tests/browser."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st

from audiobatch.reports.links import href
from audiobatch.reports.page import histogram, write_page
from audiobatch.reports.totals import Totals
from audiobatch.reports.waveforms import BINS, HEIGHT, STEP, read_peaks, waveform_path
from tests.narrowing import present
from tests.reports_samples import chunks_of, sample_row, speak_into


class Page(HTMLParser):
    """Tags with their attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.code: dict[str, list[str]] = {"script": [], "style": []}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._inside = tag if tag in self.code else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.code[self._inside].append(data)

    def rows(self) -> list[dict[str, str]]:
        return [attrs for tag, attrs in self.tags if tag == "li" and "data-id" in attrs]


def made(folder: Path, rows: list[dict[str, Any]], **options: object) -> Any:
    totals = Totals()
    for _ in totals.count([rows]):
        pass
    options.setdefault("draw", None)
    return write_page(chunks_of(rows), folder, totals, **options)  # type: ignore[arg-type]


def page(folder: Path, rows: list[dict[str, Any]], **options: object) -> Page:
    return Page(made(folder, rows, **options).paths[0].read_text(encoding="utf-8"))


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</textarea><script>alert(1)</script>",
    "{{ 7*7 }}{% raw %}",
    "javascript:alert(1)",
    "\x00\x1b[31m\u202e</li>",
    "' onmouseover='alert(1)",
    "<!-- --!> ]]>",
)


def test_hostile_texts_add_no_tag_no_attribute_and_no_script(tmp_path: Path) -> None:
    plain = sample_row(0, review_note="note", error_message="oops")
    texts = (
        "item_id",
        "prompt",
        "transcript",
        "review_note",
        "error_message",
        "deployment",
        "voice",
        "input",
    )
    tame = [re.sub(r"[^/]", "a", text) + str(place) for place, text in enumerate(HOSTILE)]
    calm = page(tmp_path, [plain | dict.fromkeys(texts, f"{text}.wav") for text in tame], title="calm")
    wild = page(tmp_path, [plain | dict.fromkeys(texts, text + ".wav") for text in HOSTILE], title=HOSTILE[0])
    assert [(tag, sorted(attrs)) for tag, attrs in wild.tags] == [
        (tag, sorted(attrs)) for tag, attrs in calm.tags
    ]
    assert wild.code == calm.code
    for _, attrs in wild.tags:
        for name in ("src", "href", "data-src"):
            assert not attrs.get(name, "").lower().lstrip().startswith("javascript:")


def test_the_policy_allows_the_pages_own_script_and_style_by_hash_and_no_connection(tmp_path: Path) -> None:
    found = page(tmp_path, [sample_row(0)])
    (policy,) = [attrs["content"] for tag, attrs in found.tags if "Policy" in attrs.get("http-equiv", "")]
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256("".join(found.code[kind]).encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert not any("style" in attrs for _, attrs in found.tags)


def test_the_page_names_no_other_place(tmp_path: Path) -> None:
    text = made(tmp_path, [sample_row(n) for n in range(5)]).paths[0].read_text()
    assert (
        re.findall(
            r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)
        )
        == []
    )


def test_rows_stand_in_order_and_carry_what_the_script_filters_by(tmp_path: Path) -> None:
    rows = [sample_row(n) for n in range(40)]
    shown = page(tmp_path, rows).rows()
    assert [row["data-id"] for row in shown] == [row["item_id"] for row in rows]
    assert [row["data-status"] for row in shown] == [row["status"] for row in rows]
    assert shown[4]["data-checks"] == "near_silent"


def test_a_large_job_is_paged_and_pages_of_a_larger_one_before_are_removed(tmp_path: Path) -> None:
    rows = [sample_row(n) for n in range(25)]
    (tmp_path / "report-9.html").write_text("<p>somebody's own")
    written = made(tmp_path, rows, page_rows=10)
    assert [path.name for path in written.paths] == ["report.html", "report-2.html", "report-3.html"]
    pages = [Page(path.read_text()) for path in written.paths]
    assert [row["data-id"] for page in pages for row in page.rows()] == [row["item_id"] for row in rows]
    assert {attrs["href"] for tag, attrs in pages[1].tags if "rel" in attrs and tag == "a"} == {
        "./report.html",
        "./report-3.html",
    }
    made(tmp_path, rows[:5], page_rows=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report-9.html", "report.html"]


def test_a_job_without_rows_has_a_page_too(tmp_path: Path) -> None:
    assert page(tmp_path, []).rows() == []


@given(st.text(st.characters(exclude_categories=())))
def test_a_link_never_leaves_the_scheme_or_the_host_of_the_page(text: str) -> None:
    link = href(text)
    assert link == "" or (link.startswith(("./", "../", "/")) and not link.startswith("//"))
    assert link.isascii()


def test_the_picture_of_a_recording_follows_its_samples(tmp_path: Path) -> None:
    path = tmp_path / "half.wav"
    sf.write(path, np.concatenate([np.zeros(8000), 0.5 * np.ones(4000), -0.5 * np.ones(4000)]), 16_000)
    peaks = read_peaks(path)
    assert present(peaks).shape == (BINS, 2)
    assert np.allclose(present(peaks)[: BINS // 2 - 1], 0)
    assert np.allclose(present(peaks)[BINS // 2 + 1 : 3 * BINS // 4 - 1, 1], 0.5, atol=1e-3)
    assert np.allclose(present(peaks)[3 * BINS // 4 + 1 :, 0], -0.5, atol=1e-3)
    drawn = waveform_path(path)
    assert re.fullmatch(rf"M1 \d+v\d+(m{STEP} -?\d+v\d+){{{BINS - 1}}}", present(drawn))
    assert len(present(drawn)) < 10 * BINS


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg"])
def test_every_common_format_has_a_picture(tmp_path: Path, suffix: str) -> None:
    samples, rate = sf.read(speak_into(tmp_path / "a.wav", 1.0))
    sf.write(tmp_path / f"b{suffix}", samples, rate)
    peaks, wav = read_peaks(tmp_path / f"b{suffix}"), read_peaks(tmp_path / "a.wav")
    assert np.abs(present(peaks)).max() == pytest.approx(np.abs(present(wav)).max(), abs=0.1)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"not audio at all" * 99, None])
def test_what_cannot_be_read_has_no_picture_and_is_no_failure(
    tmp_path: Path, content: bytes | None, capfd: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "odd.wav").write_bytes(content)
    assert waveform_path(tmp_path / "odd.wav") is None
    assert capfd.readouterr() == ("", "")


def test_very_short_and_silent_recordings_have_a_flat_picture(tmp_path: Path) -> None:
    for frames in (1, 50, 5000):
        sf.write(tmp_path / "a.wav", np.zeros(frames), 16_000)
        assert waveform_path(tmp_path / "a.wav") == f"M1 {HEIGHT // 2}v1" + f"m{STEP} -1v1" * (BINS - 1)


def test_a_page_made_again_draws_only_what_is_new_or_has_changed(tmp_path: Path) -> None:
    rows = [sample_row(n, input="in.txt", audio_file=f"audio/{n} é&.wav") for n in range(4)]
    for n in range(4):
        speak_into(tmp_path / f"audio/{n} é&.wav", 0.2, seed=n)
    drawn: list[str] = []

    def draw(path: Path) -> str | None:
        drawn.append(path.name)
        return waveform_path(path)

    (first,) = made(tmp_path, rows, draw=draw).paths
    before = first.read_text().replace("\n", "")
    assert len(drawn) == 4
    drawn.clear()
    speak_into(tmp_path / "audio/2 é&.wav", 0.3, seed=9)
    made(tmp_path, [sample_row(9, input="", audio_file="audio/gone.wav"), *rows], draw=draw)
    assert drawn == ["2 é&.wav"]
    again = Page(first.read_text())
    pictures = [attrs["d"] for tag, attrs in again.tags if tag == "path" and attrs["d"].startswith("M1 ")]
    assert len(pictures) == 4
    assert [picture in before for picture in pictures] == [True, True, False, True]


def test_a_histogram_counts_every_value_and_keeps_outliers_from_flattening_it() -> None:
    chart = histogram([*range(100), 10_000])
    assert sum(present(chart).counts) == 101
    assert present(chart).open_end
    assert max(present(chart).heights) == 100
    assert histogram([]) is None
    assert sum(present(histogram([3.0, 3.0])).counts) == 2
