"""A service that lies: it answers some calls with bodies of every wrong kind, and bills what it answers with 200.

    python -m tests.crash.hostile JOURNAL SEED SHARE

Prints its base URL. `JOURNAL` gets a JSON line a call: the prompt, what was answered, whether it was billed. Which
call gets what is drawn from the seed, the prompt and how often it came; from the third time on it is answered well.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bare_server import voice

#: From so many calls on, a prompt is answered well.
GOOD_FROM = 2

SOUND = voice(0.3)


@dataclass
class Answer:
    """What goes over the wire; `keep` is the share of it after which the connection is cut."""

    body: bytes
    status: int = 200
    reason: bytes = b"OK"
    headers: dict[str, bytes] = field(default_factory=dict)
    keep: float | None = None
    raw: bytes | None = None


def completion(**changes: Any) -> dict[str, Any]:
    """A reply as it should be; `audio`, `message`, `choice` and others replace parts of it."""
    audio = {"id": "audio_1", "expires_at": 1_900_000_000, "transcript": "Well said."}
    audio |= {"data": base64.b64encode(SOUND).decode(), **changes.pop("audio", {})}
    message = {"role": "assistant", "content": None, "refusal": None, "audio": audio}
    message |= changes.pop("message", {})
    choice = {"index": 0, "finish_reason": "stop", "message": message, **changes.pop("choice", {})}
    details = {"completion_tokens_details": {"audio_tokens": 6, "text_tokens": 4}}
    usage = {"prompt_tokens": 12, "completion_tokens": 10, "total_tokens": 22, **details}
    return {
        "id": "c1",
        "object": "chat.completion",
        "model": "m",
        "choices": [choice],
        "usage": usage,
    } | changes


def _json(**changes: Any) -> Answer:
    return Answer(json.dumps(completion(**changes)).encode())


def _text(find: str, put: str) -> Answer:
    return Answer(json.dumps(completion()).replace(find, put).encode())


def _sent(**how: Any) -> Answer:
    answer = _json()
    for name, value in how.items():
        setattr(answer, name, value)
    return answer


def _wave(at: int, put: bytes) -> Answer:
    data = SOUND[:at] + put + SOUND[at + len(put) :]
    return _json(audio={"data": base64.b64encode(data).decode()})


def _of(data: bytes) -> Answer:
    return _json(audio={"data": base64.b64encode(data).decode()})


def _refused(status: int, body: bytes = b'{"error": {"message": "no"}}', **headers: bytes) -> Answer:
    return Answer(body, status, b"No", {name.replace("_", "-"): value for name, value in headers.items()})


#: Kind → what is answered. Redirects and refusals of the credential end a run, and are left out.
KINDS: dict[str, Callable[[], Answer]] = {
    "empty": lambda: Answer(b""),
    "null": lambda: Answer(b"null"),
    "a number": lambda: Answer(b"42"),
    "a text": lambda: Answer(b'"words"'),
    "a list": lambda: Answer(b"[1, {}]"),
    "html": lambda: _sent(body=b"<html><body>Sign in</body></html>", headers={"Content-Type": b"text/html"}),
    "cut json": lambda: Answer(json.dumps(completion()).encode()[:-300]),
    "nested deep": lambda: Answer(b'{"choices":' + b"[" * 90_000 + b"]" * 90_000 + b"}"),
    "no choices": lambda: _json(choices=[]),
    "choices null": lambda: _json(choices=None),
    "choices an object": lambda: _json(choices={"0": 1}),
    "choice a number": lambda: _json(choices=[7]),
    "message a list": lambda: _json(choice={"message": [1]}),
    "message null": lambda: _json(choice={"message": None}),
    "finish a list": lambda: _json(choice={"finish_reason": ["stop", {}]}),
    "filtered": lambda: _json(choice={"finish_reason": "content_filter"}, message={"audio": None}),
    "content a number": lambda: _json(message={"audio": None, "content": 42}),
    "content parts": lambda: _json(message={"audio": None, "content": [{"type": "text", "text": "hi"}]}),
    "text alone": lambda: _json(message={"audio": None, "content": "Only words."}),
    "refusal": lambda: _json(message={"audio": None, "refusal": "=I will not"}),
    "audio a text": lambda: _json(message={"audio": "sound"}),
    "base64 broken": lambda: _json(audio={"data": "@@no base64@@"}),
    "base64 cut": lambda: _json(audio={"data": base64.b64encode(SOUND).decode()[:-3]}),
    "base64 a list": lambda: _json(audio={"data": [1, 2, 3]}),
    "base64 null": lambda: _json(audio={"data": None}),
    "base64 empty": lambda: _json(audio={"data": ""}),
    "no sound": lambda: _of(b"MZ\x90\0" + b"\0" * 4000),
    "wave cut": lambda: _of(SOUND[:20]),
    "wave of nothing": lambda: _of(SOUND[:44]),
    "wave of 4 GB": lambda: _wave(40, b"\xf0\xff\xff\xff"),
    "wave at no rate": lambda: _wave(24, b"\0\0\0\0"),
    "wave at 4 GHz": lambda: _wave(24, b"\xff\xff\xff\xff"),
    "wave of 65535 channels": lambda: _wave(22, b"\xff\xff"),
    "transcript null": lambda: _json(audio={"transcript": None}),
    "transcript an object": lambda: _json(audio={"transcript": {"a": 1}}),
    "transcript of controls": lambda: _json(audio={"transcript": "a\x00b\x1b[2J\x9b\u202e\ufeff\r=1+1"}),
    "lone surrogate": lambda: _text("Well said.", "Well \\ud83d said."),
    "no utf-8": lambda: _sent(body=json.dumps(completion()).encode().replace(b"Well", b"W\xff\xfe")),
    "byte order mark": lambda: _sent(body=b"\xef\xbb\xbf" + json.dumps(completion()).encode()),
    "twice the key": lambda: _text('"object":', '"choices": [], "object":'),
    "no usage": lambda: _json(usage=None),
    "usage a list": lambda: _json(usage=[1, 2]),
    "usage below zero": lambda: _json(usage={"prompt_tokens": -20_000, "completion_tokens": -1}),
    "usage of halves": lambda: _json(usage={"prompt_tokens": 1.5, "completion_tokens": 2.25}),
    "usage of texts": lambda: _json(usage={"prompt_tokens": "12", "completion_tokens": "ten"}),
    "usage true": lambda: _json(usage={"prompt_tokens": True, "completion_tokens": False}),
    "usage huge": lambda: _json(usage={"prompt_tokens": 10**18, "completion_tokens": 10**30}),
    "usage of 4000 digits": lambda: _text('"completion_tokens": 10', '"completion_tokens": ' + "9" * 4000),
    "usage not a number": lambda: _text('"prompt_tokens": 12', '"prompt_tokens": NaN'),
    "usage endless": lambda: _text('"prompt_tokens": 12', '"prompt_tokens": 1e999'),
    "details below zero": lambda: _json(
        usage={"prompt_tokens": 9, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 10**11}}
    ),
    "expires never": lambda: _json(audio={"expires_at": 10**15}),
    "expires as text": lambda: _json(audio={"expires_at": "9" * 300}),
    "id of a megabyte": lambda: _json(audio={"id": "a" * 1_000_000}),
    "id an object": lambda: _json(audio={"id": {"../..": 1}}, model=["x"]),
    "error with 200": lambda: Answer(b'{"error": {"message": "no", "code": ["x"]}}'),
    "content type wrong": lambda: _sent(headers={"Content-Type": b"application/json; charset=../../x"}),
    "content type sound": lambda: _sent(headers={"Content-Type": b"audio/wav"}),
    "reason no utf-8": lambda: _sent(reason=b"\xff\xfe gut \xfc"),
    "request id no utf-8": lambda: _sent(headers={"x-request-id": b"r-\xff\xfe\x80"}),
    "request id a formula": lambda: _sent(headers={"x-request-id": b"=cmd|calc!A1<script>"}),
    "long header": lambda: _sent(headers={"x-long": b"a" * 100_000}),
    "many headers": lambda: _sent(headers={f"x-many-{n}": b"1" for n in range(2000)}),
    "limits of nonsense": lambda: _sent(
        headers={
            "x-ratelimit-limit-requests": b"-5",
            "x-ratelimit-remaining-requests": b"NaN",
            "x-ratelimit-remaining-tokens": b"-inf",
            "x-ratelimit-reset-tokens": b"-1s",
        }
    ),
    "packed": lambda: _sent(
        body=gzip.compress(json.dumps(completion()).encode()), headers={"Content-Encoding": b"gzip"}
    ),
    "packed badly": lambda: _sent(body=b"\x1f\x8b\x08\x00rubbish", headers={"Content-Encoding": b"gzip"}),
    "packed unknown": lambda: _sent(headers={"Content-Encoding": b"x-none"}),
    "reset in the body": lambda: _sent(keep=0.5),
    "reset behind the head": lambda: _sent(keep=0.0),
    "length too long": lambda: _sent(headers={"Content-Length": b"9999999"}, keep=1.0),
    "no http": lambda: _sent(raw=b"rubbish\r\n\r\n"),
    "closed": lambda: _sent(raw=b""),
    "too many, wait for nonsense": lambda: _refused(429, Retry_After=b"NaN"),
    "too many, wait below zero": lambda: _refused(429, Retry_After=b"-5"),
    "busy, in html": lambda: _refused(503, b"<h1>busy</h1>"),
    "trouble, a list": lambda: _refused(500, b'[{"error": 1}]'),
    "trouble, nothing": lambda: _refused(500, b""),
}


class Hostile:
    """The service: what it has answered goes to its journal before it leaves."""

    def __init__(self, journal: Path, seed: str, share: float) -> None:
        self.journal = journal.open("a", buffering=1, encoding="utf-8")
        self.seed, self.share = seed, share
        self.came: Counter[str] = Counter()

    def answer(self, prompt: str) -> tuple[str, Answer]:
        draw = random.Random(f"{self.seed} {prompt} {self.came[prompt]}")
        self.came[prompt] += 1
        if self.came[prompt] > GOOD_FROM or draw.random() >= self.share:
            return "good", _json()
        kind = draw.choice(list(KINDS))
        return kind, KINDS[kind]()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await self._one(reader, writer):
                pass
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One call; whether the connection is of use for another."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        length = next((int(line.split(":")[1]) for line in head if line.startswith("content-length:")), 0)
        body = await reader.readexactly(length)
        prompt = json.loads(body)["messages"][-1]["content"]
        kind, answer = self.answer(prompt)
        await asyncio.sleep(random.uniform(0.02, 0.2))
        billed = answer.status == 200 and answer.raw is None
        line = {"prompt": prompt, "kind": kind, "billed": billed, "status": answer.status}
        self.journal.write(json.dumps(line) + "\n")
        if answer.raw is not None:
            writer.write(answer.raw)
            await writer.drain()
            return False
        fields = {"Content-Type": b"application/json", "Content-Length": b"%d" % len(answer.body)}
        fields |= answer.headers
        lines = [b"HTTP/1.1 %d %s" % (answer.status, answer.reason)]
        lines += [name.encode() + b": " + value for name, value in fields.items()]
        keep = len(answer.body) if answer.keep is None else int(len(answer.body) * answer.keep)
        writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + answer.body[:keep])
        await writer.drain()
        return answer.keep is None


async def main(journal: str, seed: str, share: str) -> None:
    """Serve until the process is killed; print the address first."""
    hostile = Hostile(Path(journal), seed, float(share))
    server = await asyncio.start_server(hostile.serve, "127.0.0.1", 0, limit=1 << 24)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
