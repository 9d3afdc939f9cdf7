"""Hostile replies: nothing grows without bounds, nothing goes elsewhere, and what is paid for is kept."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from audiobatch.calls.stats import RunSummary
from audiobatch.errors import ExitCode
from audiobatch.limits import circuit_breaker, retry
from audiobatch.model import Reply
from audiobatch.transports.reply_memory import COPIES, MEMORY, CallMemory, ReplyMemory, timing
from tests.hostile_server import (
    Call,
    HostileServer,
    as_events,
    chunk,
    good,
    good_body,
    head,
    hostile_server,
    hostile_sessions,
    spoken_frames,
    whole,
)
from tests.narrowing import local
from tests.running import rows_of, run_job, write_wav

MB = 1_000_000
SMALL_MEMORY_BYTES = 8 * MB
LIMIT = "larger than 5 MB (--max-reply-mb)"
BOMB_BYTES = 300 << 20
CHUNKED = b"Transfer-Encoding: chunked"
WAYS: dict[str, dict[str, Any]] = {"chat": {}, "stream": {"stream": True}}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "hostile-key")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., RunSummary]:
    """Runs a job of prompts, by name, of which the `hostile` one gets the odd reply."""

    def job(
        server: HostileServer, *, prompts: Sequence[str] = ("good", "hostile"), **settings: Any
    ) -> RunSummary:
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        for name in prompts:
            (folder / f"{name}.txt").write_text(f"Say {name}.")
        common = {"output": str(tmp_path / "out"), "provider": "openai", "reports": "none", "max_reply_mb": 5}
        return run_job(**{**common, "inputs": [str(folder)], "endpoint": server.url, **settings})

    return job


@pytest.fixture
def run_transcription(tmp_path: Path) -> Callable[..., RunSummary]:
    """Runs a job whose one recording is answered well, and then written down."""

    def job(server: HostileServer, **settings: Any) -> RunSummary:
        write_wav(tmp_path / "in" / "memo.wav", seconds=1)
        common = {"output": str(tmp_path / "out"), "provider": "openai", "reports": "none", "max_reply_mb": 5}
        common |= {"modalities": "text", "transcribe_inputs": "whisper-1"}
        return run_job(**{**common, "inputs": [str(tmp_path / "in")], "endpoint": server.url, **settings})

    return job


def one(summary: RunSummary) -> dict[str, dict[str, str]]:
    """The rows by their items' names."""
    return {row["item_id"].rpartition("/")[2].removesuffix(".txt"): row for row in rows_of(summary)}


def is_hostile(call: Call) -> bool:
    return b"hostile" in call.body


def count(server: HostileServer, mark: bytes) -> int:
    return sum(mark in call.body for call in server.calls)


def log_of(summary: RunSummary) -> str:
    return local(summary.output / "runs" / f"{summary.run_id}.log").read_text(encoding="utf-8")


def packed(window: int) -> bytes:
    packer, piece = zlib.compressobj(1, zlib.DEFLATED, window), bytes(1 << 20)
    return b"".join([*(packer.compress(piece) for _ in range(BOMB_BYTES >> 20)), packer.flush()])


@pytest.fixture(scope="module")
def bombs() -> dict[str, bytes]:
    return {"gzip": packed(31), "deflate": packed(15)}


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
@pytest.mark.parametrize("way", WAYS)
def test_a_body_that_unpacks_to_hundreds_of_megabytes_is_given_up(
    way: str, packing: str, bombs: dict[str, bytes], run: Callable[..., RunSummary]
) -> None:
    def answer(call: Call) -> Iterable[bytes]:
        field = b"Content-Encoding: " + packing.encode()
        return [whole(bombs[packing], field)] if is_hostile(call) else good(call)

    with hostile_server(answer) as server:
        run(server, prompts=["warm"], **WAYS[way])
        tracemalloc.start()
        try:
            summary = run(server, **WAYS[way])
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    row = one(summary)["hostile"]
    assert (row["status"], row["error_type"]) == ("failed", "bad_reply")
    assert LIMIT in row["error_message"]
    assert one(summary)["good"]["status"] == "succeeded"
    assert (summary.exit_code, count(server, b"hostile")) == (3, 1)
    assert peak_bytes < 80 * MB


def endless_spaces() -> Iterator[bytes]:
    yield head(CHUNKED)
    yield from repeat(chunk(b" " * MB))


def endless_events() -> Iterator[bytes]:
    yield head(CHUNKED)
    yield from repeat(chunk(b'data: {"choices": [{"delta": {"content": "word "}}]}\n\n' * 10_000))


def endless_by_length() -> Iterator[bytes]:
    yield head(b"Content-Length: 1000000000000")
    yield from repeat(b'{"' + b"x" * MB)


ENDLESS = [endless_spaces, endless_events, endless_by_length]


@pytest.mark.parametrize("endless", ENDLESS)
@pytest.mark.parametrize("way", WAYS)
def test_a_body_without_end_is_given_up_at_the_limit(
    way: str, endless: Callable[[], Iterator[bytes]], run: Callable[..., RunSummary]
) -> None:
    with hostile_server(lambda call: endless() if is_hostile(call) else good(call)) as server:
        summary = run(server, **WAYS[way])
    row = one(summary)["hostile"]
    assert (row["status"], row["error_type"]) == ("failed", "bad_reply")
    assert LIMIT in row["error_message"]
    assert one(summary)["good"]["status"] == "succeeded"
    assert (summary.exit_code, server.posts) == (3, 2)


@pytest.mark.parametrize("way", WAYS)
def test_a_body_that_drips_is_given_up_when_its_time_is_over(
    way: str, run: Callable[..., RunSummary]
) -> None:
    def dripping() -> Iterator[bytes]:
        yield head(CHUNKED)
        while not server.ended.wait(0.05):
            yield chunk(b'data: {"choices": []}\n\n')

    began_s = time.monotonic()
    with hostile_server(lambda call: dripping() if is_hostile(call) else good(call)) as server:
        summary = run(server, timeout_s=1.5, on_unknown="skip", **WAYS[way])
    row = one(summary)["hostile"]
    assert (row["status"], row["error_type"]) == ("unknown", "timed_out")
    assert one(summary)["good"]["status"] == "succeeded"
    assert (summary.exit_code, server.posts) == (3, 2)
    assert time.monotonic() - began_s < 15


@pytest.mark.parametrize("endless", ["bomb", *ENDLESS])
def test_words_written_down_without_end_cost_the_words_alone(
    endless: Callable[[], Iterator[bytes]] | str,
    bombs: dict[str, bytes],
    run_transcription: Callable[..., RunSummary],
) -> None:
    def answer(call: Call) -> Iterable[bytes]:
        if not call.is_transcription:
            return good(call)
        return [whole(bombs["gzip"], b"Content-Encoding: gzip")] if isinstance(endless, str) else endless()

    with hostile_server(answer) as server:
        summary = run_transcription(server)
    assert [row["status"] for row in rows_of(summary)] == ["succeeded"]
    assert "1 results could not be transcribed" in summary.message
    assert LIMIT in log_of(summary)
    assert sum(call.is_transcription for call in server.calls) == 1


def endless_deltas() -> Iterator[str]:
    yield json.dumps({"type": "response.created", "response": {"id": "resp_1"}})
    yield from repeat(json.dumps({"type": "response.output_text.delta", "delta": "word " * 20_000}))


def a_frame_that_unpacks() -> Iterator[str]:
    yield json.dumps({"type": "response.created", "response": {"id": "resp_1"}})
    yield " " * (30 * MB)


@pytest.mark.parametrize("frames", [endless_deltas, a_frame_that_unpacks])
def test_a_session_that_says_too_much_is_given_up(
    frames: Callable[[], Iterator[str]], run: Callable[..., RunSummary]
) -> None:
    with hostile_sessions(lambda said: frames() if "hostile" in said else spoken_frames()) as server:
        summary = run(server, transport="realtime")
    row = one(summary)["hostile"]
    assert one(summary)["good"]["status"] == "succeeded"
    assert (row["status"], row["error_type"], server.asks) == ("failed", "bad_reply", 2), row["error_message"]
    assert LIMIT in row["error_message"]


@dataclass
class Watched:
    """What was seen of the account of this process's replies."""

    waits_s: list[float]
    most_bytes: int = 0


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """The account of this process's replies, a small one; and what is seen of it."""
    assert MEMORY.used_bytes == 0
    account = Watched([])
    reserve = MEMORY.reserve

    async def watched(call: CallMemory, size_bytes: int) -> float:
        waited_s = await reserve(call, size_bytes)
        if waited_s:
            account.waits_s.append(waited_s)
        account.most_bytes = max(account.most_bytes, MEMORY.used_bytes)
        return waited_s

    monkeypatch.setattr(MEMORY, "reserve", watched)
    monkeypatch.setattr(MEMORY, "limit_bytes", SMALL_MEMORY_BYTES)
    yield account
    assert MEMORY.used_bytes == 0


@pytest.mark.parametrize("way", [*WAYS, "realtime"])
def test_large_replies_at_once_wait_for_each_other_and_all_come(
    way: str, memory: Watched, run: Callable[..., RunSummary]
) -> None:
    names = [f"item{number:02}" for number in range(10)]
    sizes, many = [], threading.Event()

    def sized(size_bytes: int) -> None:
        sizes.append(size_bytes)
        if len(sizes) >= 5:
            many.set()
        many.wait(2)

    def answer(call: Call) -> Iterable[bytes]:
        body = good_body(call, sound_s=30.0)
        sized(len(body))
        return [whole(body)]

    def frames(said: str) -> Iterable[str]:
        reply = spoken_frames(sound_s=30.0)
        sized(sum(map(len, reply)))
        return reply

    settings = {"transport": "realtime"} if way == "realtime" else WAYS[way]
    with hostile_sessions(frames) if way == "realtime" else hostile_server(answer) as server:
        summary = run(server, prompts=names, max_concurrency=len(names), max_reply_mb=10, **settings)
    assert (summary.exit_code, summary.succeeded) == (0, len(names))
    assert (server.asks or server.posts) == len(names)
    assert memory.waits_s
    assert COPIES * sum(sizes) > 3 * SMALL_MEMORY_BYTES
    assert memory.most_bytes <= SMALL_MEMORY_BYTES + COPIES * max(sizes)


@pytest.mark.parametrize("way", [*WAYS, "realtime"])
def test_a_reply_is_let_go_when_it_is_recorded(way: str, run: Callable[..., RunSummary]) -> None:
    gc.collect()
    before, held = replies_in_memory(), []

    def answer(call: Call) -> Iterable[bytes]:
        held.append(replies_in_memory() - before)
        return good(call)

    def frames(_said: str) -> Iterable[str]:
        held.append(replies_in_memory() - before)
        return spoken_frames()

    settings = {"transport": "realtime"} if way == "realtime" else WAYS[way]
    with hostile_sessions(frames) if way == "realtime" else hostile_server(answer) as server:
        run(server, prompts=["a", "b", "c", "d", "e"], max_concurrency=1, **settings)
    assert held == [0] * 5


def replies_in_memory() -> int:
    return sum(type(object_) is Reply for object_ in gc.get_objects())


async def test_a_time_out_stands_still_while_a_reply_waits_for_memory() -> None:
    memory = ReplyMemory(limit_bytes=10)
    first = CallMemory(memory)
    await first.grow(10)
    asyncio.get_running_loop().call_later(0.5, first.release)
    with memory.call():
        async with timing(0.2):
            assert await memory.current_call().grow(10) >= 0.5
        with pytest.raises(TimeoutError):
            async with timing(0.2):
                await asyncio.sleep(5)
    assert memory.used_bytes == 0


def long_message(size_bytes: int) -> bytes:
    return json.dumps({"error": {"message": "no " * (size_bytes // 3), "code": "odd"}}).encode()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries after the service's trouble follow each other at once."""
    monkeypatch.setattr(retry, "_BACK_OFF", lambda _state: 0.0)
    monkeypatch.setattr(circuit_breaker, "FIRST_WAIT_S", 0.01)


ERROR_BODIES = {
    "many MB of JSON": long_message(20 * MB),
    "under a MB of JSON": long_message(900_000),
    "many MB of text": b"no " * (20 * MB // 3),
}


def large_files(summary: RunSummary) -> dict[str, int]:
    """Of the output, but for the bodies that are kept beside the items."""
    found = (
        path for path in local(summary.output).rglob("*") if path.is_file() and path.parent.name != "replies"
    )
    return {path.name: size for path in found if (size := path.stat().st_size) > 500_000}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("body", ERROR_BODIES.values(), ids=ERROR_BODIES)
@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize("way", WAYS)
def test_a_long_error_leaves_a_short_text(
    way: str, status: int, body: bytes, run: Callable[..., RunSummary]
) -> None:
    def answer(call: Call) -> Iterable[bytes]:
        return [whole(body, status=status, reason=b"Odd")] if is_hostile(call) else good(call)

    with hostile_server(answer) as server:
        summary = run(server, **WAYS[way])
    assert large_files(summary) == {}
    row = one(summary)["hostile"]
    error_type, posts = ("rejected", 1) if status == 400 else ("unavailable", retry.MAX_TRIES)
    assert (row["status"], row["error_type"]) == ("failed", error_type)
    assert one(summary)["good"]["status"] == "succeeded"
    assert count(server, b"hostile") == posts
    assert 0 < len(row["error_message"]) < 10_000


@pytest.mark.parametrize("way", [*WAYS, "realtime"])
def test_a_long_error_in_place_of_a_reply_leaves_a_short_text(
    way: str, run: Callable[..., RunSummary]
) -> None:
    settings = {"transport": "realtime"} if way == "realtime" else WAYS[way]
    error = {"error": {"message": "no " * MB, "code": "odd", "type": "invalid_request_error"}}

    def answer(call: Call) -> Iterable[bytes]:
        if not is_hostile(call):
            return good(call)
        return [whole(as_events(error) if call.is_streamed else json.dumps(error).encode())]

    def frames(said: str) -> Iterable[str]:
        return [json.dumps({"type": "error", **error})] if "hostile" in said else spoken_frames()

    with hostile_sessions(frames) if way == "realtime" else hostile_server(answer) as server:
        summary = run(server, **settings)
    assert large_files(summary) == {}
    rows = one(summary)
    assert (rows["hostile"]["status"], rows["good"]["status"]) == ("failed", "succeeded")
    assert 0 < len(rows["hostile"]["error_message"]) < 10_000
    assert (summary.exit_code, server.asks or server.posts) == (3, 2)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("way", [*WAYS, "realtime"])
def test_a_redirect_is_not_followed_and_ends_the_deployment(
    way: str, status: int, run: Callable[..., RunSummary]
) -> None:
    settings = {"transport": "realtime"} if way == "realtime" else WAYS[way]
    with hostile_server(good) as other:
        origin = other.url.removesuffix("/v1")
        target = origin.replace("//", "//someone:word@") + "/stolen?key=value"
        redirect = whole(b"", b"Location: " + target.encode(), status=status, reason=b"Elsewhere")
        with hostile_server(lambda _call: [redirect]) as server:
            summary = run(server, prompts=["a", "b", "c"], max_concurrency=1, **settings)
    assert (other.connections, len(server.calls)) == (0, 1)
    assert (summary.exit_code, summary.stopped_by) == (ExitCode.NO_DEPLOYMENT, "no_deployment")
    assert f"(HTTP {status}) to {origin}," in summary.message
    assert "someone" not in summary.message
    assert "stolen" not in summary.message
    assert summary.succeeded == 0


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_of_a_transcription_ends_the_words_alone(
    status: int, run_transcription: Callable[..., RunSummary]
) -> None:
    with hostile_server(good) as other:
        origin = other.url.removesuffix("/v1")
        redirect = whole(b"", b"Location: " + origin.encode() + b"/stolen", status=status)
        with hostile_server(lambda call: [redirect] if call.is_transcription else good(call)) as server:
            summary = run_transcription(server)
    assert other.connections == 0
    assert sum(call.is_transcription for call in server.calls) == 1
    assert [row["status"] for row in rows_of(summary)] == ["succeeded"]
    assert "1 results could not be transcribed" in summary.message
    assert f"(HTTP {status}) to {origin}," in log_of(summary)


HALF = "Hello \ud800 there."
SURROUNDINGS = {
    "a reason in another encoding": {"reason": b"Erf\xfcllt \xff\xfe"},
    "a header of 9 KB": {"field": b"x-note: " + b"a" * 9000},
    "a header of 100 KB": {"field": b"x-note: " + b"a" * 100_000},
    "a header in another encoding": {"field": b"x-request-id: req-\xff\xfc\x80"},
}


def oddly(body: bytes, reason: bytes = b"OK", field: bytes = b"x-note: none") -> list[bytes]:
    return [whole(body, field, reason=reason)]


@pytest.mark.parametrize("odd", SURROUNDINGS.values(), ids=SURROUNDINGS)
@pytest.mark.parametrize("way", WAYS)
def test_a_paid_reply_is_kept_whatever_surrounds_it(
    way: str, odd: dict[str, bytes], run: Callable[..., RunSummary]
) -> None:
    with hostile_server(lambda call: oddly(good_body(call), **odd)) as server:
        summary = run(server, **WAYS[way])
    assert [(row["status"], row["transcript"]) for row in rows_of(summary)] == [
        ("succeeded", "Hello there.")
    ] * 2
    assert (summary.exit_code, server.posts) == (0, 2)


@pytest.mark.parametrize("odd", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_paid_words_are_kept_whatever_surrounds_them(
    odd: dict[str, bytes], run_transcription: Callable[..., RunSummary]
) -> None:
    with hostile_server(lambda call: oddly(good_body(call), **odd)) as server:
        summary = run_transcription(server)
    (row,) = rows_of(summary)
    assert (row["status"], row["input_transcript"]) == ("succeeded", "Hello there.")
    assert (summary.exit_code, summary.message, server.posts) == (0, "", 2)


@pytest.mark.parametrize("way", [*WAYS, "realtime"])
def test_half_a_character_in_a_transcript_is_replaced(way: str, run: Callable[..., RunSummary]) -> None:
    settings = {"transport": "realtime"} if way == "realtime" else WAYS[way]

    def answer(call: Call) -> Iterable[bytes]:
        return [whole(good_body(call, HALF))] if is_hostile(call) else good(call)

    def frames(said: str) -> Iterable[str]:
        return spoken_frames(HALF if "hostile" in said else "Hello there.")

    with hostile_sessions(frames) if way == "realtime" else hostile_server(answer) as server:
        summary = run(server, **settings)
    rows = one(summary)
    assert [rows[name]["status"] for name in ("good", "hostile")] == ["succeeded"] * 2
    assert "repaired" in rows["hostile"]["checks"]
    assert "repaired" not in rows["good"]["checks"]
    text = local(summary.output / rows["hostile"]["transcript_file"]).read_bytes().decode("utf-8")
    assert text == rows["hostile"]["transcript"] == "Hello \ufffd there."
    assert (summary.exit_code, server.asks or server.posts) == (0, 2)


@pytest.mark.parametrize(
    "start",
    ["soon", None, [1], {"s": 1}, -1, 1e300, float("nan"), float("inf"), "missing"],
    ids=["word", "null", "list", "object", "negative", "huge", "nan", "infinite", "missing"],
)
def test_a_segment_without_a_time_is_left_out_of_the_subtitles_alone(
    start: dict[str, int] | float | list[int] | str | None, run_transcription: Callable[..., RunSummary]
) -> None:
    odd = {"start": start, "end": 1.0, "text": "there."}
    if start == "missing":
        del odd["start"]
    segments = [{"start": 0.0, "end": 0.5, "text": "Hello"}, odd]
    words = {"text": "Hello there.", "duration": 1.0, "segments": segments}

    def answer(call: Call) -> Iterable[bytes]:
        return [whole(json.dumps(words).encode())] if call.is_transcription else good(call)

    with hostile_server(answer) as server:
        summary = run_transcription(server)
    (row,) = rows_of(summary)
    assert (row["status"], row["input_transcript"]) == ("succeeded", "Hello there.")
    (subtitles,) = local(summary.output).rglob("*.srt")
    assert subtitles.read_text("utf-8") == "1\n00:00:00,000 --> 00:00:00,500\nHello\n\n"
    assert (summary.exit_code, summary.message, server.posts) == (0, "", 2)


def test_half_a_character_in_written_words_is_replaced_in_all_files(
    run_transcription: Callable[..., RunSummary],
) -> None:
    words = {"text": HALF, "duration": 1.0, "segments": [{"start": 0, "end": 1, "text": HALF}]}

    def answer(call: Call) -> Iterable[bytes]:
        return [whole(json.dumps(words).encode())] if call.is_transcription else good(call)

    with hostile_server(answer) as server:
        summary = run_transcription(server)
    (row,) = rows_of(summary)
    assert (row["status"], row["input_transcript"]) == ("succeeded", "Hello \ufffd there.")
    for ending in ("srt", "vtt"):
        (subtitles,) = local(summary.output).rglob(f"*.{ending}")
        assert "Hello \ufffd there." in subtitles.read_bytes().decode("utf-8")
    assert (summary.exit_code, server.posts) == (0, 2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", b"\x1f\x8b" + bytes(range(256)) * 40),
        ("gzip", b"\x1f\x8b\x08\x00breaks off"[:11]),
        ("x-none", b"\x00packed"),
    ],
)
def test_a_body_that_nobody_can_unpack_is_kept_as_it_came(
    encoding: str, packed: bytes, way: str, run: Callable[..., RunSummary], tmp_path: Path
) -> None:

    def answer(call: Call) -> Iterable[bytes]:
        if not is_hostile(call):
            return good(call)
        return [whole(packed, b"Content-Encoding: " + encoding.encode())]

    with hostile_server(answer) as server:
        summary = run(server, **WAYS[way])
    assert (summary.exit_code, summary.succeeded, server.posts) == (3, 1, 2)
    assert one(summary)["hostile"]["error_type"] == "bad_reply"
    (body,) = (tmp_path / "out" / "replies").iterdir()
    assert body.read_bytes() == packed


def test_half_a_character_in_words_that_are_written_down_is_replaced_and_told(
    run_transcription: Callable[..., RunSummary],
) -> None:
    with hostile_server(
        lambda call: [whole(good_body(call, HALF))] if call.is_transcription else good(call)
    ) as server:
        summary = run_transcription(server)
    (row,) = rows_of(summary)
    assert (row["status"], row["input_transcript"]) == ("succeeded", "Hello \ufffd there.")
    assert "repaired" in row["checks"]
