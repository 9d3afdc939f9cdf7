"""The Realtime API: an item's turns in one session, over a WebSocket of the SDK's.

    turn 1   open a session, tell its settings, the user's words and recording, ask, listen
    turn 2…  the same session: only the new words; it has heard the others
    …        a session that is gone, too old, or of another voice: a new one, the earlier turns told again,
             recordings as they were and replies by their words; a recorded turn is never bought again

`realtime_protocol.py` knows the protocol; here are the socket, the clock and the watchdog. Nothing waits without
an end: the whole turn has a deadline, and so has each silence of the service. Reconnecting is left off: only the
caller knows what a second try may cost.

Source: learn.microsoft.com, "Use the GPT Realtime API via WebSockets" (v1 address, `api-key` header or bearer,
30 minutes a session); developers.openai.com/api/docs/guides/realtime-conversations (60 minutes). 2026-11-20.

`Sessions` holds the open sessions of one deployment: one an item, kept between its turns, never more than the
limit. A kept session is only a saving: where the limit is reached, the one that has waited longest is closed for a
new one, and its item's next turn replays the words. So whoever may call also gets a session.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import openai
import orjson
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from audiobatch.audio.convert import pcm_of
from audiobatch.errors import (
    AudioBatchError,
    AuthenticationFailed,
    BadReply,
    ServiceError,
    Unavailable,
    working_on_event,
    working_on_reply,
)
from audiobatch.transports.lenient_json import loads
from audiobatch.transports.realtime_errors import closed_words, not_opened
from audiobatch.transports.realtime_protocol import RealtimeTurn, State
from audiobatch.transports.realtime_reply import limits_as_headers, reply_of
from audiobatch.transports.realtime_words import Hearing, Utterance, ask_of, session_of, stages_of
from audiobatch.transports.reply_body import LARGEST_REPLY_BYTES
from audiobatch.transports.reply_memory import MEMORY, CallMemory
from audiobatch.transports.stored_body import body_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from openai.resources.realtime.realtime import AsyncRealtimeConnection

    from audiobatch.model import AudioPart, Reply, Request
    from audiobatch.transports.auth import EntraTokens
    from audiobatch.transports.base import Sink
    from audiobatch.transports.realtime_protocol import TurnReply

log = logging.getLogger(__name__)

# A redirected upgrade would carry the key elsewhere; the SDK gives its client no such setting.
connect.process_redirect = lambda self, exc: exc  # type: ignore[method-assign] # noqa: ARG005
CONNECT_TIMEOUT_S = 20.0
#: So long may the service say nothing while something is due; pings do not count.
QUIET_S = 60.0
#: After the reply is whole, so long is waited for the input's transcript.
TRANSCRIPT_WAIT_S = 15.0
#: Sessions whose age the service does not tell.
LIFE_S = {"azure": 30 * 60.0, "openai": 60 * 60.0}
#: The close code of a frame over the limit. Source: RFC 6455, section 7.4.1.
_TOO_BIG = 1009


@dataclass(slots=True, kw_only=True, eq=False)
class _Call:
    """One turn on its way. `deadline_s` is of the event loop's clock."""

    request: Request
    spoken: bytes
    sink: Sink | None
    deadline_s: float
    size_bytes: int = 0
    repaired: bool = False
    memory: CallMemory = field(default_factory=MEMORY.current_call)


class RealtimeTransport:
    """One deployment's sessions."""

    name = "realtime"
    streams = True

    def __init__(
        self,
        *,
        provider: Literal["azure", "openai"],
        endpoint: str | None,
        deployment: str,
        key: str | None,
        tokens: EntraTokens | None,
        timeout_s: float,
        most_reply_bytes: int = LARGEST_REPLY_BYTES,
        hearing: Hearing | None = None,
        max_sessions: int = 16,
        quiet_s: float = QUIET_S,
    ) -> None:
        """Args: exactly one of `key` and `tokens` is given; `endpoint` None is OpenAI's own."""
        self._provider = provider
        self._deployment = deployment
        self._tokens = tokens
        self._timeout_s = timeout_s
        self._most_reply_bytes = most_reply_bytes
        self._quiet_s = min(quiet_s, timeout_s)
        self._hearing = hearing or Hearing()
        self.sessions = Sessions(max_sessions)
        address = f"{endpoint}/openai/v1" if provider == "azure" else endpoint
        self._client = openai.AsyncOpenAI(api_key=tokens or key or "", base_url=address, max_retries=0)
        # On Azure a key is no bearer for sockets; the header is what its own clients send.
        self._headers = {"api-key": key} if provider == "azure" and key else {}

    def end_item(self, item_id: str) -> None:
        """Close the session that was kept for its next turn."""
        session = self.sessions.take(item_id)
        if session is not None:
            self.sessions.close(session)

    async def aclose(self) -> None:
        await self.sessions.aclose()
        await self._client.close()

    async def send(self, request: Request, sink: Sink | None = None) -> Reply:
        """One turn; see `Transport.send`. A token that was refused is renewed once."""
        started_s = time.perf_counter()
        if sink is not None:
            await sink.restart()
        spoken = await asyncio.to_thread(_spoken, request.audio)
        deadline_s = asyncio.get_running_loop().time() + self._timeout_s
        call = _Call(request=request, spoken=spoken, sink=sink, deadline_s=deadline_s)
        kept = self.sessions.take(request.item_id)
        found = await self._in_kept(kept, call) if kept else None
        session, reply = found or await self._in_new(call)
        self.sessions.keep(session)
        latency_s = time.perf_counter() - started_s

        def body() -> bytes:
            return body_of(reply_of(replace(request, format="wav"), reply, session.model, latency_s))

        with working_on_reply(body, str(reply.response.get("id") or "") or None):
            made = await asyncio.to_thread(reply_of, request, reply, session.model, latency_s)
            return replace(made, repaired=call.repaired)

    async def _in_kept(self, session: Session, call: _Call) -> tuple[Session, TurnReply] | None:
        """In the session that heard the earlier turns; None where it is gone, and nothing was asked of it."""
        request = call.request
        if not session.serves(request, for_s=self._timeout_s):
            self.sessions.close(session)
            return None
        turn = self._turn(session, request, [Utterance(text=request.text, pcm=call.spoken)], new=False)
        try:
            return session, await self._listen(session, turn, call)
        except Unavailable as gone:
            if not turn.safe_to_repeat:
                raise
            log.info("%s: its session is gone (%s); told again in a new one", request.item_id, gone)
            return None

    async def _in_new(self, call: _Call) -> tuple[Session, TurnReply]:
        request = call.request
        used = self._tokens.current if self._tokens else ""
        try:
            session = await self._open(call)
        except AuthenticationFailed:
            if self._tokens is None or not used:
                raise
            await self._tokens.renew(used)
            session = await self._open(call)
        told = []
        for earlier in request.history:
            sound = await asyncio.to_thread(_spoken, earlier.audio)
            told += [Utterance(text=earlier.text, pcm=sound), Utterance(text=earlier.reply.text, reply=True)]
        session.turns = len(request.history)
        utterances = [*told, Utterance(text=request.text, pcm=call.spoken)]
        turn = self._turn(session, request, utterances, new=True)
        return session, await self._listen(session, turn, call)

    async def _open(self, call: _Call) -> Session:
        """A connection whose upgrade was accepted."""
        try:
            async with asyncio.timeout_at(call.deadline_s):
                await self.sessions.reserve()
        except TimeoutError as late:
            raise Unavailable("no session was free in time") from late
        manager = self._client.realtime.connect(
            model=self._deployment,
            extra_headers=self._headers,
            # A frame is unpacked within this.
            websocket_connection_options={"max_size": self._most_reply_bytes},
        )
        try:
            async with asyncio.timeout(min(CONNECT_TIMEOUT_S, self._timeout_s)):
                connection = await manager.enter()
        except BaseException as failed:
            self.sessions.release()
            if isinstance(failed, Exception):
                raise not_opened(failed) from failed
            raise
        ends_at_s = time.time() + LIFE_S[self._provider]
        return Session(item_id=call.request.item_id, connection=connection, ends_at_s=ends_at_s)

    def _turn(
        self, session: Session, request: Request, utterances: list[Utterance], *, new: bool
    ) -> RealtimeTurn:
        settings = session_of(request, self._hearing)
        changed = settings if settings != session.settings else None
        session.settings = settings
        return RealtimeTurn(
            stages_of(utterances, self._hearing, session=changed),
            ask_of(request),
            wants_audio=request.wants_audio,
            transcript_due=request.audio is not None and self._hearing.transcription_model is not None,
            new_session=new,
        )

    async def _listen(self, session: Session, turn: RealtimeTurn, call: _Call) -> TurnReply:
        """Speak and listen until the turn is done; a session in which it failed is closed."""
        whole = False
        try:
            await self._send(session, turn, turn.start(), call)
            while turn.state is not State.DONE:
                event = await self._next(session, turn, call)
                if event is not None:
                    self._note(session, event)
                    with working_on_event():
                        answers = turn.receive(event)
                    await self._send(session, turn, answers, call)
            whole = True
        except AudioBatchError as failed:
            log.info("%s: turn failed while %s: %s", call.request.item_id, turn.state, failed)
            if isinstance(failed, ServiceError):
                failed.limits = failed.limits or limits_as_headers(turn.reply.limits)
            raise
        finally:
            if not whole:
                self.sessions.close(session)
        session.turns += 1
        return turn.reply

    async def _send(
        self, session: Session, turn: RealtimeTurn, events: Iterable[dict[str, Any]], call: _Call
    ) -> None:
        for event in events:
            wait_s, why = self._patience(turn, call)
            try:
                async with asyncio.timeout(wait_s):
                    await session.connection.send_raw(orjson.dumps(event).decode())
            except ConnectionClosed as closed:
                turn.ended(closed_words(closed))
                return
            except TimeoutError:
                turn.ended(f"the service took nothing{why}", timed_out=True)
                return

    async def _next(self, session: Session, turn: RealtimeTurn, call: _Call) -> dict[str, Any] | None:
        """The next event; None where the session ended and the turn can do without."""
        wait_s, why = self._patience(turn, call)
        try:
            async with asyncio.timeout(wait_s):
                frame = await session.connection.recv_bytes()
        except ConnectionClosed as closed:
            if not turn.safe_to_repeat and closed.sent is not None and closed.sent.code == _TOO_BIG:
                raise self._too_large() from closed
            turn.ended(closed_words(closed))
            return None
        except TimeoutError:
            turn.ended(f"the service said nothing{why}", timed_out=True)
            return None
        call.size_bytes += len(frame)
        if call.size_bytes > self._most_reply_bytes:
            raise self._too_large()
        call.deadline_s += await call.memory.grow(len(frame))
        if call.sink is not None and not turn.safe_to_repeat:
            await call.sink.write(frame + b"\n")
        event: Any = None
        with contextlib.suppress(ValueError, RecursionError):
            event, repaired = loads(frame)
            call.repaired = call.repaired or repaired
        if not isinstance(event, dict):
            turn.not_an_event(repr(frame[:80]))
            return None
        return event

    def _too_large(self) -> BadReply:
        return BadReply(f"the reply is larger than {self._most_reply_bytes / 1e6:.0f} MB (--max-reply-mb)")

    def _patience(self, turn: RealtimeTurn, call: _Call) -> tuple[float, str]:
        """How long to wait for what is next, in seconds, and the words for it having been too long."""
        quiet_s = self._quiet_s
        if turn.state is State.TRANSCRIBING:
            quiet_s = min(quiet_s, TRANSCRIPT_WAIT_S)
        left_s = max(0.0, call.deadline_s - asyncio.get_running_loop().time())
        if left_s < quiet_s:
            return left_s, f" more within {self._timeout_s:.0f} s"
        return quiet_s, f" for {quiet_s:.0f} s"

    @staticmethod
    def _note(session: Session, event: Mapping[str, Any]) -> None:
        """What `session.created` says of the session: its model, and when it will end."""
        found = event.get("session")
        if event.get("type") != "session.created" or not isinstance(found, dict):
            return
        session.model = str(found.get("model") or "")
        ends_at = found.get("expires_at")
        if isinstance(ends_at, int | float) and ends_at > 0:
            session.ends_at_s = float(ends_at)


def _spoken(audio: AudioPart | None) -> bytes:
    return pcm_of(audio.data) if audio is not None else b""


#: A closing handshake is a courtesy; a server that does not answer it is left.
CLOSE_TIMEOUT_S = 2.0


@dataclass(slots=True, eq=False, kw_only=True)
class Session:
    """One open session.

    Attributes:
        turns: how many of the item's turns it has heard and answered.
        ends_at_s: when the service will close it, by `time.time()`.
        settings: as last told by `session.update`; None before the first.
    """

    item_id: str
    connection: AsyncRealtimeConnection
    ends_at_s: float
    turns: int = 0
    model: str = ""
    settings: dict[str, Any] | None = None

    def serves(self, request: Request, *, for_s: float) -> bool:
        """Whether this request is the item's next turn, and can be answered before the session ends."""
        voice = (self.settings or {}).get("audio", {}).get("output", {}).get("voice")
        same = self.turns == len(request.history) and (not request.voice or request.voice == voice)
        return same and time.time() + for_s < self.ends_at_s


class Sessions:
    """The sessions of one deployment."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0
        self._kept: OrderedDict[str, Session] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        #: The most that were ever open at once: for tests and the log.
        self.peak = 0

    def take(self, item_id: str) -> Session | None:
        """The session kept for an item; it is the caller's now."""
        return self._kept.pop(item_id, None)

    def keep(self, session: Session) -> None:
        """For the item's next turn, unless somebody needs the room before."""
        self._kept[session.item_id] = session
        self._wake()

    async def reserve(self) -> None:
        """Wait for room for one more; `release` or `close` gives it back."""
        while self._open >= self._most:
            if self._kept:
                self.close(self._kept.popitem(last=False)[1])
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake()  # what woke this one is another's now
                raise
        self._open += 1
        self.peak = max(self.peak, self._open)

    def release(self) -> None:
        """A reserved session did not come about, or is closed."""
        self._open -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def close(self, session: Session) -> None:
        """End a session, in the background: nobody waits for a closing handshake."""
        task = asyncio.get_running_loop().create_task(self._close(session))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close(self, session: Session) -> None:
        connection = session.connection
        transport = getattr(getattr(connection, "_connection", None), "transport", None)
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                # What still comes is read away: behind unread frames the end would never be seen.
                await asyncio.gather(connection.close(), _read_away(connection))
        except (OSError, TimeoutError, WebSocketException) as failed:
            log.debug("a session did not end in order: %r", failed)
        finally:
            if transport is not None:
                transport.abort()
            self.release()

    async def aclose(self) -> None:
        """Close all that are kept."""
        while self._kept:
            self.close(self._kept.popitem()[1])
        await asyncio.gather(*self._closing, return_exceptions=True)


async def _read_away(connection: AsyncRealtimeConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            await connection.recv_bytes()
