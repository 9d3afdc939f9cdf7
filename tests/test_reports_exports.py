"""The manifest for programs, and the approved clips for a customer."""

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, cast

import pytest

from audiobatch.errors import ConfigError, StorageError
from audiobatch.reports.approved import export_approved
from audiobatch.reports.columns import COLUMNS
from audiobatch.reports.exports import Writer, write_jsonl, write_parquet, write_parts
from audiobatch.reports.manifest import ManifestRow, read_manifest, write_csv
from audiobatch.reports.totals import Totals
from audiobatch.storage.local import LocalStorage
from tests.reports_samples import chunks_of, sample_row, speak_into

ROWS = [
    sample_row(n, checks=("silent", "clipped") if n == 2 else (), **{"in.topic": f"=t{n}", "reply.n": n})
    for n in range(25)
]
EXTRA = ["in.topic", "reply.n"]


def test_json_lines_hold_a_typed_object_a_row() -> None:
    out = io.BytesIO()
    assert write_jsonl(chunks_of(ROWS, 10), out, extra_columns=EXTRA) == 25
    lines = [json.loads(line, parse_float=Decimal) for line in out.getvalue().splitlines()]
    assert list(lines[0]) == [*COLUMNS, *EXTRA]
    assert lines[2]["checks"] == ["silent", "clipped"]
    assert lines[0]["cost_usd"] == Decimal("0.009125")
    assert lines[0]["started_at"] == "2026-03-01T12:00:00.000Z"
    assert lines[3]["in.topic"] == "=t3"
    assert lines[3]["reply.n"] == 3
    assert lines[11]["transcript"] is None


def test_json_lines_take_any_text_and_never_write_what_is_no_json() -> None:
    out = io.BytesIO()
    row = {"item_id": "\ud800\x1b", "transcript": "\u2028 é", "latency_s": float("nan")}
    write_jsonl([[row]], out, columns=["item_id", "transcript", "latency_s"])
    assert json.loads(out.getvalue()) == {
        "item_id": "_xD800__x001B_",
        "transcript": "\u2028 é",
        "latency_s": None,
    }


def test_parquet_holds_typed_columns_and_a_row_group_a_chunk() -> None:
    if not os.environ.get("CI"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as pq

    out = io.BytesIO()
    assert write_parquet(chunks_of(ROWS, 10), out, extra_columns=EXTRA) == 25
    file = pq.ParquetFile(out)
    assert file.num_row_groups == 3
    rows = file.read().to_pylist()
    assert list(rows[0]) == [*COLUMNS, *EXTRA]
    assert rows[0]["cost_usd"] == Decimal("0.009125")
    assert rows[0]["started_at"] == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert rows[2]["checks"] == ["silent", "clipped"]
    assert rows[0]["turn"] == 1
    assert rows[11]["latency_s"] is None


def test_totals_count_what_passes_and_pass_it_on() -> None:
    totals = Totals()
    assert [len(chunk) for chunk in totals.count(chunks_of(ROWS, 10))] == [10, 10, 5]
    assert totals.rows == totals.items == 25
    assert totals.statuses == {"succeeded": 23, "failed": 1, "refused": 1}
    assert totals.cost_usd == sum((row["cost_usd"] for row in ROWS if row["cost_usd"]), Decimal(0))
    assert sum(totals.cost_by_deployment.values()) == totals.cost_usd
    assert len(totals.latencies_s) == 23


def approved_job(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for n, review in enumerate(("ok", "redo", "ok", "", "ok")):
        name = f"audio/lessons/{n} =x.wav"
        speak_into(folder / name, 0.2, seed=n)
        rows.append(sample_row(n, review=review, audio_file=name, status="succeeded"))
    (folder / "audio/lessons/4 =x.wav").unlink()
    return rows


def test_the_approved_clips_alone_are_exported_with_their_own_manifest(tmp_path: Path) -> None:
    rows = approved_job(tmp_path / "job")
    done = export_approved([rows], LocalStorage(tmp_path / "job"), tmp_path / "out")
    assert done.clips == 2
    assert done.missing == (rows[4]["item_id"],)
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert files == ["lessons/0 =x.wav", "lessons/2 =x.wav", "manifest.csv"]
    frame = read_manifest(done.manifest)
    assert list(frame["audio_file"]) == files[:2]
    for name, source in zip(files, ("0 =x.wav", "2 =x.wav"), strict=False):
        assert (tmp_path / "out" / name).read_bytes() == (
            tmp_path / "job/audio/lessons" / source
        ).read_bytes()


def test_handing_over_again_copies_nothing_that_is_there(tmp_path: Path) -> None:
    rows = approved_job(tmp_path / "job")
    export_approved([rows], LocalStorage(tmp_path / "job"), tmp_path / "out")
    clip = tmp_path / "out/lessons/0 =x.wav"
    before = clip.stat().st_ino
    export_approved([rows], LocalStorage(tmp_path / "job"), tmp_path / "out")
    assert clip.stat().st_ino == before


@pytest.mark.parametrize("name", ["../secret.wav", "/etc/hostname", "audio/link.wav"])
def test_a_path_that_leads_out_of_the_job_is_never_copied(tmp_path: Path, name: str) -> None:
    (tmp_path / "job/audio").mkdir(parents=True)
    (tmp_path / "secret.wav").write_bytes(b"secret")
    (tmp_path / "job/audio/link.wav").symlink_to(tmp_path / "secret.wav")
    row = sample_row(0, review="ok", audio_file=name)
    done = export_approved([[row]], LocalStorage(tmp_path / "job"), tmp_path / "out")
    assert (done.clips, len(done.missing)) == (0, 1)
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["manifest.csv"]


def test_nothing_is_written_through_a_link_in_the_target(tmp_path: Path) -> None:
    rows = approved_job(tmp_path / "job")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/manifest.csv").write_text("item_id\n")  # of an earlier export
    (tmp_path / "out/lessons").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="symbolic link"):
        export_approved([rows], LocalStorage(tmp_path / "job"), tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_jobs_own_folder_is_no_place_to_export_to(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name another one"):
        export_approved([[]], LocalStorage(tmp_path), tmp_path)


def test_parts_hold_together_what_the_manifest_holds_and_no_part_of_an_earlier_set_stays(
    tmp_path: Path,
) -> None:
    storage = LocalStorage(tmp_path)
    three = write_parts(chunks_of(ROWS, 10), storage, "csv", write_csv, rows=12, extra_columns=EXTRA)
    assert three == [f"manifest-parts/0000{n}.csv" for n in (1, 2, 3)]
    parts = [read_manifest(tmp_path / name) for name in three]
    assert [len(part) for part in parts] == [12, 12, 1]
    with (tmp_path / "whole.csv").open("wb") as out:
        write_csv(chunks_of(ROWS, 10), out, extra_columns=EXTRA)
    whole = read_manifest(tmp_path / "whole.csv")
    assert [list(row) for part in parts for row in part.itertuples(index=False)] == [
        list(row) for row in whole.itertuples(index=False)
    ]
    assert write_parts(chunks_of(ROWS, 10), storage, "csv", write_csv, rows=25) == three[:1]
    assert sorted(path.name for path in (tmp_path / "manifest-parts").iterdir()) == ["00001.csv"]
    assert write_parts([], storage, "csv", write_csv, rows=25) == []
    assert list((tmp_path / "manifest-parts").iterdir()) == []


def test_rows_in_parts_are_drawn_a_chunk_at_a_time(tmp_path: Path) -> None:
    made = 0

    def chunks() -> Iterator[list[dict[str, Any]]]:
        nonlocal made
        for _ in range(20):
            made += 1000
            yield [sample_row(n % 20) for n in range(1000)]

    seen = []

    def write(
        chunks: Iterable[Sequence[ManifestRow]],
        _out: IO[Any],
        *,
        extra_columns: Sequence[str] = (),
        columns: Sequence[str] | None = None,
    ) -> int:
        for chunk in chunks:
            seen.append((len(chunk), made))  # noqa: PERF401 - `made` changes meanwhile
        return len(seen)

    write_parts(chunks(), LocalStorage(tmp_path), "csv", cast("Writer", write), rows=7500)
    assert sum(count for count, _ in seen) == 20_000
    written = 0
    for count, drawn in seen:
        written += count
        assert drawn - written <= 1000, "no more is held than what was asked for"
