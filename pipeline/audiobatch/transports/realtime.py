"""Send an item's turns over the Realtime API: one session an item, over a WebSocket of the SDK's.

    turn 1   open a session, send its settings and the user's text and recording, ask for a response, listen
    turn 2…  the same session: only the new message, since the session has the others
    …        where the session is gone, too old, or has another voice: a new one. The earlier turns are sent again,
             recordings unchanged and replies as text; a recorded turn is never bought again

`realtime_protocol.py` knows the protocol; here are the socket, the clock and the watchdog. Every wait ends: the
whole turn has a deadline, and so has each silence of the service. The SDK's reconnecting is off: only the caller
knows what a second try may cost.

Source: learn.microsoft.com, "Use the GPT Realtime API via WebSockets" (v1 address, `api-key` header or bearer,
30 minutes a session); developers.openai.com/api/docs/guides/realtime-conversations (60 minutes). 2026-11-20.

`Sessions` holds the open sessions of one deployment, up to a limit. A session stays open between its item's turns
only to save sending them again. Where the limit is reached, the one that has been idle longest is closed for a
new one, so that every call gets a session.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

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
from audiobatch.transports.error_mapping import close_reason, from_failed_opening
from audiobatch.transports.realtime_protocol import RealtimeTurn, State
from audiobatch.transports.realtime_reply import limits_as_headers, reply_of
from audiobatch.transports.realtime_request import (
    InputAudioSettings,
    Utterance,
    response_event,
    session_of,
    stages_of,
)
from audiobatch.transports.reply_content import parse_json
from audiobatch.transports.reply_memory import MEMORY, CallMemory
from audiobatch.transports.stored_body import body_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from openai.resources.realtime.realtime import AsyncRealtimeConnection

    from audiobatch.model import AudioPart, Reply, Request
    from audiobatch.transports.base import ServiceAccess, Sink
    from audiobatch.transports.realtime_reply import TurnReply

log = logging.getLogger(__name__)

# A redirected upgrade would send the key elsewhere; the SDK has no setting for it.
connect.process_redirect = lambda self, exc: exc  # type: ignore[method-assign] # noqa: ARG005
CONNECT_TIMEOUT_S = 20.0
#: Longest wait for the closing handshake, which is not needed.
CLOSE_TIMEOUT_S = 2.0
#: Longest silence of the service while an event is due; pings do not count.
QUIET_S = 60.0
#: Longest wait for the input's transcript after the reply is complete.
TRANSCRIPT_WAIT_S = 15.0
#: Life of a session where the service does not name its end.
LIFE_S = {"azure": 30 * 60.0, "openai": 60 * 60.0}
#: The close code for a frame over the limit. Source: RFC 6455, section 7.4.1.
_TOO_BIG = 1009


@dataclass(slots=True, kw_only=True, eq=False)
class _Call:
    """A turn in progress. `deadline_s` is on the event loop's clock."""

    request: Request
    pcm: bytes
    sink: Sink | None
    deadline_s: float
    size_bytes: int = 0
    repaired: bool = False
    memory: CallMemory = field(default_factory=MEMORY.current_call)


class RealtimeTransport:
    """Realtime sessions of one deployment."""

    name = "realtime"
    streams = True

    def __init__(
        self,
        access: ServiceAccess,
        *,
        input_audio: InputAudioSettings | None = None,
        max_sessions: int = 16,
        quiet_s: float = QUIET_S,
    ) -> None:
        """Args: `quiet_s`: longest silence of the service while an event is due."""
        self._provider = access.provider
        self._deployment = access.deployment
        self._tokens = access.tokens
        self._timeout_s = access.timeout_s
        self._largest_reply_bytes = access.largest_reply_bytes
        self._quiet_s = min(quiet_s, access.timeout_s)
        self._input_audio = input_audio or InputAudioSettings()
        self.sessions = Sessions(max_sessions)
        is_azure = access.provider == "azure"
        self._client = openai.AsyncOpenAI(
            api_key=access.tokens or access.key or "",
            base_url=f"{access.endpoint}/openai/v1" if is_azure else access.endpoint,
            max_retries=0,
        )
        # Azure does not accept a key as a bearer for sockets; its own clients send this header.
        self._headers = {"api-key": access.key} if is_azure and access.key else {}

    def end_item(self, item_id: str) -> None:
        """Close the item's session: it has no more turns."""
        session = self.sessions.take(item_id)
        if session is not None:
            self.sessions.close(session)

    async def aclose(self) -> None:
        """Close the sessions and the client."""
        await self.sessions.aclose()
        await self._client.close()

    async def send(self, request: Request, sink: Sink | None = None) -> Reply:
        """Make one turn; see `Transport.send`. A refused token is renewed once."""
        started_s = time.perf_counter()
        if sink is not None:
            await sink.restart()
        pcm = await asyncio.to_thread(_pcm, request.audio)
        deadline_s = asyncio.get_running_loop().time() + self._timeout_s
        call = _Call(request=request, pcm=pcm, sink=sink, deadline_s=deadline_s)
        idle = self.sessions.take(request.item_id)
        done = await self._in_idle_session(idle, call) if idle else None
        session, turn = done or await self._in_new_session(call)
        self.sessions.put_back(session)
        latency_s = time.perf_counter() - started_s

        def body_to_store() -> bytes:
            return body_of(reply_of(replace(request, format="wav"), turn, session.model, latency_s))

        with working_on_reply(body_to_store, str(turn.response.get("id") or "") or None):
            reply = await asyncio.to_thread(reply_of, request, turn, session.model, latency_s)
            return replace(reply, repaired=call.repaired)

    async def _in_idle_session(self, session: Session, call: _Call) -> tuple[Session, TurnReply] | None:
        """Make the turn in the session of the earlier turns; None where it is gone and nothing was bought."""
        request = call.request
        if not session.serves(request, for_s=self._timeout_s):
            self.sessions.close(session)
            return None
        turn = self._turn(session, request, [Utterance(text=request.text, pcm=call.pcm)], new=False)
        try:
            return session, await self._listen(session, turn, call)
        except Unavailable as error:
            if not turn.safe_to_repeat:
                raise
            log.info(
                "%s: its session is gone (%s); the turns are sent again in a new one", request.item_id, error
            )
            return None

    async def _in_new_session(self, call: _Call) -> tuple[Session, TurnReply]:
        """Make the turn in a new session, after sending the earlier turns."""
        request = call.request
        used_token = self._tokens.current if self._tokens else ""
        try:
            session = await self._open(call)
        except AuthenticationFailed:
            if self._tokens is None or not used_token:
                raise
            await self._tokens.renew(used_token)
            session = await self._open(call)
        utterances = []
        for exchange in request.history:
            pcm = await asyncio.to_thread(_pcm, exchange.audio)
            utterances.append(Utterance(text=exchange.text, pcm=pcm))
            utterances.append(Utterance(text=exchange.reply.text, is_reply=True))
        session.turns = len(request.history)
        utterances.append(Utterance(text=request.text, pcm=call.pcm))
        turn = self._turn(session, request, utterances, new=True)
        return session, await self._listen(session, turn, call)

    async def _open(self, call: _Call) -> Session:
        """Open a session, within the limit."""
        try:
            async with asyncio.timeout_at(call.deadline_s):
                await self.sessions.reserve()
        except TimeoutError as error:
            raise Unavailable("no session was free in time") from error
        manager = self._client.realtime.connect(
            model=self._deployment,
            extra_headers=self._headers,
            # It limits a frame after unpacking.
            websocket_connection_options={"max_size": self._largest_reply_bytes},
        )
        try:
            async with asyncio.timeout(min(CONNECT_TIMEOUT_S, self._timeout_s)):
                connection = await manager.enter()
        except BaseException as error:
            self.sessions.release()
            if isinstance(error, Exception):
                raise from_failed_opening(error) from error
            raise
        ends_at_s = time.time() + LIFE_S[self._provider]
        return Session(item_id=call.request.item_id, connection=connection, ends_at_s=ends_at_s)

    def _turn(
        self, session: Session, request: Request, utterances: list[Utterance], *, new: bool
    ) -> RealtimeTurn:
        settings = session_of(request, self._input_audio)
        changed = settings if settings != session.settings else None
        session.settings = settings
        return RealtimeTurn(
            stages_of(utterances, self._input_audio, session=changed),
            response_event(request),
            wants_audio=request.wants_audio,
            transcript_due=request.audio is not None and self._input_audio.transcription_model is not None,
            new_session=new,
        )

    async def _listen(self, session: Session, turn: RealtimeTurn, call: _Call) -> TurnReply:
        """Send and receive until the turn is done; close the session where it fails."""
        is_done = False
        try:
            await self._send(session, turn, turn.start(), call)
            while turn.state is not State.DONE:
                event = await self._next(session, turn, call)
                if event is not None:
                    session.update_from(event)
                    with working_on_event():
                        answers = turn.receive(event)
                    await self._send(session, turn, answers, call)
            is_done = True
        except AudioBatchError as error:
            log.info("%s: turn failed while %s: %s", call.request.item_id, turn.state, error)
            if isinstance(error, ServiceError):
                raise error.with_limits(limits_as_headers(turn.reply.limits)) from error
            raise
        finally:
            if not is_done:
                self.sessions.close(session)
        session.turns += 1
        return turn.reply

    async def _send(
        self, session: Session, turn: RealtimeTurn, events: Iterable[dict[str, Any]], call: _Call
    ) -> None:
        for event in events:
            wait_s, period = self._next_wait(turn, call)
            try:
                async with asyncio.timeout(wait_s):
                    await session.connection.send_raw(orjson.dumps(event).decode())
            except ConnectionClosed as closed:
                turn.ended(close_reason(closed))
                return
            except TimeoutError:
                turn.ended(f"the service took nothing{period}", timed_out=True)
                return

    async def _next(self, session: Session, turn: RealtimeTurn, call: _Call) -> dict[str, Any] | None:
        """Receive the next event; None where the session ended and the turn is complete without it."""
        wait_s, period = self._next_wait(turn, call)
        try:
            async with asyncio.timeout(wait_s):
                frame = await session.connection.recv_bytes()
        except ConnectionClosed as closed:
            if not turn.safe_to_repeat and closed.sent is not None and closed.sent.code == _TOO_BIG:
                raise self._too_large() from closed
            turn.ended(close_reason(closed))
            return None
        except TimeoutError:
            turn.ended(f"the service said nothing{period}", timed_out=True)
            return None
        call.size_bytes += len(frame)
        if call.size_bytes > self._largest_reply_bytes:
            raise self._too_large()
        call.deadline_s += await call.memory.grow(len(frame))
        if call.sink is not None and not turn.safe_to_repeat:
            await call.sink.write(frame + b"\n")
        event: Any = None
        with contextlib.suppress(ValueError, RecursionError):
            event, repaired = parse_json(frame)
            call.repaired = call.repaired or repaired
        if not isinstance(event, dict):
            turn.not_an_event(repr(frame[:80]))
            return None
        return event

    def _too_large(self) -> BadReply:
        return BadReply(f"the reply is larger than {self._largest_reply_bytes / 1e6:.0f} MB (--max-reply-mb)")

    def _next_wait(self, turn: RealtimeTurn, call: _Call) -> tuple[float, str]:
        """Return the longest wait for the next event, in seconds, and how a message describes it."""
        quiet_s = self._quiet_s
        if turn.state is State.TRANSCRIBING:
            quiet_s = min(quiet_s, TRANSCRIPT_WAIT_S)
        left_s = max(0.0, call.deadline_s - asyncio.get_running_loop().time())
        if left_s < quiet_s:
            return left_s, f" more within {self._timeout_s:.0f} s"
        return quiet_s, f" for {quiet_s:.0f} s"


def _pcm(audio: AudioPart | None) -> bytes:
    return pcm_of(audio.data) if audio is not None else b""


@dataclass(slots=True, eq=False, kw_only=True)
class Session:
    """An open session.

    Attributes:
        turns: how many of the item's turns it has received and answered.
        ends_at_s: when the service will close it, by `time.time()`.
        settings: as last sent by `session.update`; None before the first.
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
        is_next = self.turns == len(request.history) and (not request.voice or request.voice == voice)
        return is_next and time.time() + for_s < self.ends_at_s

    def update_from(self, event: Mapping[str, Any]) -> None:
        """Take the session's model and end from `session.created`."""
        fields = event.get("session")
        if event.get("type") != "session.created" or not isinstance(fields, dict):
            return
        self.model = str(fields.get("model") or "")
        ends_at = fields.get("expires_at")
        if isinstance(ends_at, int | float) and ends_at > 0:
            self.ends_at_s = float(ends_at)


class Sessions:
    """The open sessions of one deployment."""

    def __init__(self, limit: int) -> None:
        """Args: `limit`: on sessions that are open at once."""
        self._limit = limit
        self._open = 0
        #: By item; the longest idle first.
        self._idle: OrderedDict[str, Session] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        #: The most sessions that were open at once: for tests and the log.
        self.peak = 0

    def take(self, item_id: str) -> Session | None:
        """Take an item's idle session; None where it has none."""
        return self._idle.pop(item_id, None)

    def put_back(self, session: Session) -> None:
        """Leave a session open for its item's next turn, until the limit closes it."""
        self._idle[session.item_id] = session
        self._wake()

    async def reserve(self) -> None:
        """Wait until one more session may be opened; `release` or `close` ends the reservation."""
        while self._open >= self._limit:
            if self._idle:
                self.close(self._idle.popitem(last=False)[1])
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake()  # the next waiter gets this one's turn
                raise
        self._open += 1
        self.peak = max(self.peak, self._open)

    def release(self) -> None:
        """End a reservation: the session was not opened, or is closed."""
        self._open -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def close(self, session: Session) -> None:
        """Close a session in the background, so that nobody waits for the closing handshake."""
        task = asyncio.get_running_loop().create_task(self._close(session))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close(self, session: Session) -> None:
        connection = session.connection
        transport = getattr(getattr(connection, "_connection", None), "transport", None)
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                # Frames that still arrive are read: the closing frame comes after them.
                await asyncio.gather(connection.close(), _drain(connection))
        except (OSError, TimeoutError, WebSocketException) as error:
            log.debug("a session did not end in order: %r", error)
        finally:
            if transport is not None:
                transport.abort()
            self.release()

    async def aclose(self) -> None:
        """Close all idle sessions, and wait for those that are closing."""
        while self._idle:
            self.close(self._idle.popitem()[1])
        await asyncio.gather(*self._closing, return_exceptions=True)


async def _drain(connection: AsyncRealtimeConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            await connection.recv_bytes()
