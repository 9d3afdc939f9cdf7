"""What is found in a store: the rules of local folders, on objects; and what a store that is away does to them."""

from __future__ import annotations

import io
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import openpyxl
import pytest

from audiobatch.address import Address
from audiobatch.config.jobspec import JobSpec
from audiobatch.errors import ConfigError, NothingFound, StorageError
from audiobatch.inputs.discover import Discovery
from audiobatch.inputs.prepared_recording import prepare_recording
from audiobatch.inputs.remote import PrefetchingMap, fetch_recording
from audiobatch.model import Source
from audiobatch.storage.remote import FsspecStorage
from tests.running import write_wav


@pytest.fixture
def bucket() -> str:
    """A container in memory, by its name."""
    return f"in-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def sound(tmp_path: Path) -> Callable[..., bytes]:
    return lambda pitch_hz=220.0: write_wav(
        tmp_path / "made.wav", seconds=0.2, pitch_hz=pitch_hz
    ).read_bytes()


def put(bucket: str, files: Mapping[str, bytes | str]) -> None:
    memory = fsspec.filesystem("memory")
    for name, data in files.items():
        memory.pipe_file(f"/{bucket}/{name}", data.encode() if isinstance(data, str) else data)


def found(*inputs: str, known: Any = None, **settings: Any) -> tuple[list[Source], Any]:
    discovery = Discovery(JobSpec(inputs=inputs, **settings), known or {})
    return list(discovery.sources()), discovery.stats


def ids(sources: Iterable[Source]) -> list[str]:
    return [source.item_id for source in sources]


def test_recordings_are_found_by_their_path_below_the_root(bucket: str, sound: Callable[..., bytes]) -> None:
    put(bucket, {
        "calls/b.wav": sound(), "calls/a/x #1.wav": sound(300), "calls/notes.txt": "x",
        "calls/.hidden/c.wav": sound(), "other/d.wav": sound(),
    })  # fmt: skip
    sources, stats = found(f"memory://{bucket}/calls")
    assert ids(sources) == ["a/x #1.wav", "b.wav"]
    assert {(source.root, source.path) for source in sources} == {
        (f"memory://{bucket}/calls", "a/x #1.wav"), (f"memory://{bucket}/calls", "b.wav"),
    }  # fmt: skip
    assert all(
        source.sha256 and source.media and source.media.duration_s == pytest.approx(0.2) for source in sources
    )
    assert (stats.other_files, stats.probed) == (1, 2)


def test_several_roots_put_their_names_before_the_ids(
    bucket: str, sound: Callable[..., bytes], tmp_path: Path
) -> None:
    put(bucket, {"one/a.wav": sound(), "two/a.wav": sound(300)})
    write_wav(tmp_path / "three" / "a.wav", seconds=0.2)
    inputs = (f"memory://{bucket}/one", str(tmp_path / "three"), f"memory://{bucket}/two")
    assert ids(found(*inputs)[0]) == ["one/a.wav", "three/a.wav", "two/a.wav"]
    with pytest.raises(ConfigError, match="is already part of"):
        found(f"memory://{bucket}/one", f"memory://{bucket}/one/a.wav")
    put(f"{bucket}b", {"one/a.wav": b"x"})
    with pytest.raises(ConfigError, match="two inputs are called 'one'"):
        found(f"memory://{bucket}/one", f"memory://{bucket}b/one")


def test_an_output_of_ours_is_never_entered(bucket: str, sound: Callable[..., bytes]) -> None:
    put(bucket, {
        "calls/z.wav": sound(), "calls/out/audio/a.wav": sound(), "calls/out/job.json": "{}",
        "calls/outside/b.wav": sound(300),
    })  # fmt: skip
    assert ids(found(f"memory://{bucket}/calls")[0]) == ["outside/b.wav", "z.wav"]
    with pytest.raises(ConfigError, match="is an output folder of audiobatch"):
        found(f"memory://{bucket}/calls/out")


def test_an_output_s_recordings_do_not_make_a_folder_of_prompts_one_of_recordings(
    bucket: str, sound: Callable[..., bytes]
) -> None:
    put(bucket, {"p/a.txt": "Say hi.", "p/out/job.json": "{}", "p/out/audio/a.txt.wav": sound()})
    assert ids(found(f"memory://{bucket}/p")[0]) == ["a.txt"]


def test_prompts_come_from_texts_and_tables(bucket: str) -> None:
    book = openpyxl.Workbook()
    book.active.append(["id", "prompt"])
    book.active.append(["x1", "From a workbook."])
    stream = io.BytesIO()
    book.save(stream)
    put(bucket, {
        "p/a.txt": "\ufeffOne.", "p/b.txt": b"\xff\xfe\x00", "p/deep/c.txt": "Three.",
        "lines.txt": "Four.\n\nFive.\n", "t.csv": "id;prompt\nc1;From a CSV.\n", "t.xlsx": stream.getvalue(),
        "t.jsonl": json.dumps({"id": "j1", "prompt": "From JSON."}) + "\n", "bad.csv": "name\nAnna\n", "x.pdf": "x",
    })  # fmt: skip
    sources, _ = found(f"memory://{bucket}/p")
    assert [(listed.item_id, listed.text) for listed in sources] == [
        ("a.txt", "One."),
        ("b.txt", ""),
        ("deep/c.txt", "Three."),
    ]
    assert sources[1].refusal == "the file is not UTF-8 text"
    assert [item.text for item in found(f"memory://{bucket}/lines.txt", one_prompt_per_line=True)[0]] == [
        "Four.",
        "Five.",
    ]
    for ending, name, text in (
        ("csv", "c1", "From a CSV."), ("xlsx", "x1", "From a workbook."), ("jsonl", "j1", "From JSON."),
    ):  # fmt: skip
        [source], _ = found(f"memory://{bucket}/t.{ending}")
        assert (source.item_id, source.text, source.path) == (name, text, f"t.{ending}")
        assert source.root == f"memory://{bucket}"
    with pytest.raises(ConfigError, match=r"bad\.csv: no column 'prompt'"):
        found(f"memory://{bucket}/bad.csv")
    with pytest.raises(ConfigError, match=rf"memory://{bucket}/x\.pdf: is not an input"):
        found(f"memory://{bucket}/x.pdf")
    with pytest.raises(ConfigError, match="there is no such file or folder"):
        found(f"memory://{bucket}/nowhere")


def test_include_and_exclude_hold_for_objects(bucket: str, sound: Callable[..., bytes]) -> None:
    put(bucket, {"c/a.wav": sound(), "c/b.mp3": sound(), "c/x/c.wav": sound()})
    sources, stats = found(f"memory://{bucket}/c", include=("*.wav",), exclude=("x/*",))
    assert ids(sources) == ["a.wav"]
    assert stats.left_out == 2
    with pytest.raises(NothingFound, match="leave 3 out"):
        found(f"memory://{bucket}/c", include=("*.flac",))


def known_from(sources: Iterable[Source]) -> dict[str, Any]:
    from audiobatch.ledger.rows import source_to_row

    rows = [source_to_row(source, "run") for source in sources]
    return {
        row["item_id"]: (row["size_bytes"], row["mtime_ns"], row["sha256"], row["media"], row["refusal"])
        for row in rows
    }


def test_only_what_is_new_or_changed_is_read_again(bucket: str, sound: Callable[..., bytes]) -> None:
    put(bucket, {"c/a.wav": sound(), "c/b.wav": sound(300), "c/broken.wav": "no sound"})
    first, _ = found(f"memory://{bucket}/c")
    again, stats = found(f"memory://{bucket}/c", known=known_from(first))
    assert stats.probed == 0
    assert again == first
    put(bucket, {"c/b.wav": sound(500)})  # as many bytes
    changed, stats = found(f"memory://{bucket}/c", known=known_from(first))
    assert stats.probed == 1
    assert changed[0] == first[0]
    assert changed[1].sha256 != first[1].sha256


def test_what_is_sent_is_what_is_hashed_though_it_changed_since_it_was_found(
    bucket: str, sound: Callable[..., bytes]
) -> None:
    put(bucket, {"c/a.wav": sound()})
    [source], _ = found(f"memory://{bucket}/c")
    same, unread = prepare_recording(source, JobSpec())
    assert same is source
    unread.close()
    put(bucket, {"c/a.wav": sound(600)})
    now, sent = prepare_recording(source, JobSpec())
    assert sent.audio is not None
    assert sent.audio.data == sound(600)
    assert now.sha256 != source.sha256
    assert sent.scratch is not None
    assert sent.scratch.exists()
    sent.close()
    assert not sent.scratch.exists()
    again, _ = found(f"memory://{bucket}/c")
    assert (now.sha256, now.size_bytes, now.mtime_ns) == (
        again[0].sha256,
        again[0].size_bytes,
        again[0].mtime_ns,
    )
    fsspec.filesystem("memory").rm_file(f"/{bucket}/c/a.wav")
    with pytest.raises(Exception, match="the file is gone: it was moved or deleted after it was found"):
        prepare_recording(source, JobSpec())


def test_a_store_that_is_away_is_no_fault_of_the_recordings(
    bucket: str, sound: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(bucket, {"c/a.wav": sound()})
    [source], _ = found(f"memory://{bucket}/c")
    monkeypatch.setattr("audiobatch.storage.object_stores.PATIENCE_S", 0.2)

    def away(*_: object, **__: Any) -> None:
        raise ConnectionResetError("gone")

    monkeypatch.setattr(FsspecStorage, "_get", away)
    with pytest.raises(ConfigError, match=r"c/a\.wav: the store did not answer"):
        found(f"memory://{bucket}/c")
    with pytest.raises(StorageError, match="the store did not answer"):
        fetch_recording(source, tmp_path)


def test_an_object_that_is_not_handed_out_is_refused_until_it_is(
    bucket: str, sound: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, {"c/archived.wav": sound(), "c/b.wav": sound(300)})
    get = FsspecStorage._get

    def archived(self: Any, key: str, *rest: Any, **more: Any) -> Any:
        if "archived" in key:
            raise PermissionError("InvalidObjectState")
        return get(self, key, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(FsspecStorage, "_get", archived)
        sources, _ = found(f"memory://{bucket}/c")
    assert [bool(source.refusal) for source in sources] == [True, False]
    again, stats = found(f"memory://{bucket}/c", known=known_from(sources))
    assert [listed.refusal for listed in again] == ["", ""]
    assert stats.probed == 1


def test_results_come_in_order_and_only_a_few_are_ahead() -> None:
    drawn: list[int] = []
    most_ahead = 0

    def items() -> Iterator[tuple[int, bool]]:
        for number in range(300):
            drawn.append(number)
            yield number, number % 3 != 0

    def work(number: int) -> int:
        time.sleep(0.001 * (number % 5))
        return -number

    taken: list[int] = []
    for number, result in PrefetchingMap(work, threads=4).results(items()):
        most_ahead = max(most_ahead, len(drawn) - len(taken))
        assert result == (None if number % 3 == 0 else -number)
        taken.append(number)
    assert taken == list(range(300))
    assert most_ahead <= 20


def test_a_long_stream_behind_one_slow_item_is_not_drawn_into_memory() -> None:
    gate = threading.Event()
    drawn = 0

    def items() -> Iterator[tuple[int, bool]]:
        nonlocal drawn
        for number in range(100_000):
            drawn += 1
            yield number, number == 0

    def work(_: int) -> str:
        assert gate.wait(120)
        return "done"

    results = PrefetchingMap(work).results(items())
    threading.Timer(0.3, gate.set).start()
    assert next(results) == (0, "done")
    assert drawn <= 1001
    assert sum(1 for _ in results) == 99_999


def test_a_failure_reaches_the_reader_and_ends_the_rest() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise ConfigError("the store is away")
        return number

    with pytest.raises(ConfigError, match="the store is away"):
        list(PrefetchingMap(work, threads=2).results((number, True) for number in range(1000)))


def test_an_address_of_a_container_alone_is_a_root(bucket: str, sound: Callable[..., bytes]) -> None:
    put(bucket, {"a.wav": sound()})
    sources, _ = found(str(Address("memory", bucket)))
    assert ids(sources) == ["a.wav"]
