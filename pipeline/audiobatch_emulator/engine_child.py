"""An engine's side of the pipe: what runs in the child process around the engine itself.

The child answers one request after the other and ends when its standard input does, which is also what it
sees when the emulator dies, by whatever death. An exception that an engine does not expect ends the child
with a traceback on stderr: the emulator reports its last line and starts a fresh one.
"""

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

from audiobatch_emulator.engine_frames import ALIVE, LENGTHS, header_of, packed

ALIVE_EVERY_S = 1.0

Alive = Callable[[], None]
Answer = tuple[Mapping[str, Any], bytes]


def serve(answer: Callable[[dict[str, Any], bytes, Alive], Answer], at_end: Callable[[], None]) -> None:
    """Answers requests until standard input ends.

    Args:
        answer: gets a request's header and payload, and a function to call while it works: an engine that
        does not
            call it for long is taken for hung.
        at_end: called once when the input ends, even while `answer` is at work.
    """
    # Ctrl-C in a terminal goes to every process in it; the emulator decides when to end its engines.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # What a native library prints must not end up between two messages.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    inbox: queue.SimpleQueue[tuple[dict[str, Any], bytes]] = queue.SimpleQueue()
    threading.Thread(target=_read_all, args=(requests, inbox, at_end), daemon=True).start()
    while True:
        header, payload = inbox.get()
        heartbeat = _Heartbeat(replies)
        reply_header, reply_payload = answer(header, payload, heartbeat)
        replies.write(packed(reply_header, reply_payload))
        replies.flush()


class _Heartbeat:
    """Tells the emulator, at most once a second, that the engine is still at work."""

    def __init__(self, replies: IO[bytes]) -> None:
        self._replies = replies
        self._last = time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self._last >= ALIVE_EVERY_S:
            self._replies.write(packed(ALIVE))
            self._replies.flush()
            self._last = time.monotonic()


def _read_all(
    requests: IO[bytes], inbox: queue.SimpleQueue[tuple[dict[str, Any], bytes]], at_end: Callable[[], None]
) -> None:
    """Reads messages in a thread, so that the end of the input is noticed while the engine works."""
    while len(lengths := requests.read(LENGTHS.size)) == LENGTHS.size:
        header_bytes, payload_bytes = LENGTHS.unpack(lengths)
        header = header_of(requests.read(header_bytes))
        inbox.put((header, requests.read(payload_bytes)))
    try:
        at_end()
    finally:
        os._exit(0)  # not sys.exit: the main thread may be inside an engine for minutes
