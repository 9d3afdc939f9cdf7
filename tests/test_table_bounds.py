"""Tables that are small on disk and take gigabytes: one clear line, in little memory."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import openpyxl
import pytest

from audiobatch.config.jobspec import JobSpec
from audiobatch.errors import ConfigError
from audiobatch.inputs import table_bounds
from audiobatch.inputs.discover import Discovery
from audiobatch.model import Source
from tests.running import ROOT

MOST_MEMORY_MB = 300


def sources(path: Path) -> list[Source]:
    return list(Discovery(spec=JobSpec(inputs=(str(path),))).sources())


def workbook(path: Path, *, text: str = "", unpacked_bytes: int = 0) -> None:
    """A workbook, its first prompt replaced in its XML: no library writes one like it."""
    book = openpyxl.Workbook()
    book.active.append(["id", "prompt"])
    book.active.append(["a", "MARK"])
    plain = io.BytesIO()
    book.save(plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            data = old.read(name)
            if b"MARK" not in data:
                new.writestr(name, data)
                continue
            before, after = data.split(b"MARK")
            with new.open(name, "w", force_zip64=True) as part:
                part.write(before + text.encode())
                for _ in range(unpacked_bytes >> 20):
                    part.write(b"x" * (1 << 20))
                part.write(after)


def refusal_in_little_memory(path: Path) -> str:
    script = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from audiobatch.inputs.discover import Discovery\n"
        "from audiobatch.errors import ConfigError\n"
        "from audiobatch.config.jobspec import JobSpec\n"
        "import pandas, openpyxl\n"
        "try: print(len(list(Discovery(spec=JobSpec(inputs=(sys.argv[1],))).sources())), 'rows')\n"
        "except ConfigError as refused: print(refused.message)\n"
        # Its own peak: ru_maxrss begins with that of the process that started it.
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) // 1024)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=True,
    )  # fmt: skip
    message, memory_mb = ended.stdout.splitlines()
    assert int(memory_mb) < MOST_MEMORY_MB
    return message


def test_a_workbook_of_a_megabyte_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    workbook(tmp_path / "bomb.xlsx", unpacked_bytes=1200 << 20)
    assert (tmp_path / "bomb.xlsx").stat().st_size < 3_000_000
    assert "unpacks to more than 1 GiB" in refusal_in_little_memory(tmp_path / "bomb.xlsx")


def test_a_cell_of_hundreds_of_megabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    workbook(tmp_path / "cell.xlsx", unpacked_bytes=300 << 20)
    assert "a cell has more than 1 MB" in refusal_in_little_memory(tmp_path / "cell.xlsx")


def test_a_row_of_three_hundred_thousand_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    path.write_text("prompt" + ",x" * 300_000 + "\nHello" + ",1" * 300_000 + "\n")
    assert "300,001 columns" in refusal_in_little_memory(path)


def test_a_cell_of_a_csv_that_is_too_large_is_refused_also_over_many_lines(tmp_path: Path) -> None:
    one, many = tmp_path / "one.csv", tmp_path / "many.csv"
    one.write_text("id,prompt\na," + "x" * (2 << 20) + "\n")
    with many.open("w") as file:
        file.write('id,prompt\na,"')
        for _ in range(200):
            file.write(("y" * 1000 + "\n") * 1000)
        file.write('"\n')
    for path in (one, many):
        assert "a cell has more than 1 MB" in refusal_in_little_memory(path)


def test_lines_of_json_that_are_too_long_or_too_wide_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = tmp_path / "wide.jsonl"
    wide.write_text(json.dumps({"prompt": "Hi", **{f"c{n}": 1 for n in range(20_000)}}) + "\n")
    with pytest.raises(ConfigError, match="20,001 columns"):
        sources(wide)
    large = tmp_path / "large.jsonl"
    large.write_text(json.dumps({"prompt": "x" * (2 << 20)}) + "\n")
    with pytest.raises(ConfigError, match="a cell has more than 1 MB"):
        sources(large)
    monkeypatch.setattr(table_bounds, "LARGEST_LINE_BYTES", 1000)
    with pytest.raises(ConfigError, match="a line is longer"):
        sources(large)


def test_tables_within_the_bounds_are_read(tmp_path: Path) -> None:
    text = "Say it, at length. " * 1_500
    (tmp_path / "t.csv").write_text(f'id,prompt\na,"{text}"\n')
    (tmp_path / "t.jsonl").write_text(json.dumps({"id": "a", "prompt": text}) + "\n")
    workbook(tmp_path / "t.xlsx", text="Say it. " * 4_000)
    for name in ("t.csv", "t.jsonl", "t.xlsx"):
        (source,) = sources(tmp_path / name)
        assert source.item_id == "a"
        assert not source.refusal
