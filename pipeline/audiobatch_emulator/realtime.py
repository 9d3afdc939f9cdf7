"""The routes of the Realtime API: who is let in, and the socket of each session.

    /openai/v1/realtime?model=                       Azure v1
    /openai/realtime?api-version=&deployment=        where Azure's own clients go; the GA protocol too
    /v1/realtime?model=                              OpenAI

An upgrade is refused with the status and body of an HTTP request, and only then has a record in the journal;
an open socket has a record for each response. Fault rules with a status of 400 or more, and neither `text`
nor `attempt_below`, refuse upgrades; so do those that end tokens. All others are looked at for each response:
a status then fails it (429, 5xx) or is an `error` event (the rest), `body` is put over its `response.done`.

Source: learn.microsoft.com, "Use the GPT Realtime API via WebSockets" and the migration guide (no api-version
on v1: 401); github.com/jsboige/CoursIA/pull/13149 (the beta is refused by an error and a close 4000).
"""

import asyncio
import itertools
import logging

from aiohttp import WSMsgType, web

from audiobatch_emulator.config import CHAT_MODELS
from audiobatch_emulator.faults import Ask
from audiobatch_emulator.journal import Record
from audiobatch_emulator.outcome import refused_upgrade
from audiobatch_emulator.realtime_connection import Connection
from audiobatch_emulator.realtime_events import error_event, new_id
from audiobatch_emulator.realtime_line import SocketLine
from audiobatch_emulator.realtime_responding import Responder, refuses_upgrades
from audiobatch_emulator.realtime_session import Session
from audiobatch_emulator.request_errors import invalid
from audiobatch_emulator.service import Call, Service
from audiobatch_emulator.service_errors import Refusal, by_status, no_such_path, wrong_key
from audiobatch_emulator.surface import Surface, dated_version, surface_of

logger = logging.getLogger(__name__)

PATHS = ("/openai/v1/realtime", "/openai/realtime", "/v1/realtime")
#: An append holds 15 MiB of audio, in base64.
MOST_FRAME_BYTES = 32 * 1024 * 1024
BETA_CLOSE = 4000
EXPIRED_CLOSE = 1001
#: Chat models that the realtime reference also names as models of a session.
_BOTH = ("gpt-audio-1.5", "gpt-audio-mini")


class Realtime:
    """Opens sessions."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._upgrades = itertools.count(1)

    def register(self, app: web.Application) -> None:
        """Adds the routes."""
        for path in PATHS:
            app.router.add_get(path, self.handle)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Handles one socket, from its upgrade to its end."""
        deployment = request.query.get("deployment") or request.query.get("model")
        call = Call(
            surface=surface_of(request.path),
            record=Record(n=0, at="", transport="realtime"),
        )
        try:
            model = self._let_in(call, request, deployment)
        except Refusal as refusal:
            return self._refused(call, refusal, request, deployment)
        assert deployment is not None
        socket = web.WebSocketResponse(max_msg_size=MOST_FRAME_BYTES, heartbeat=None, autoping=True)
        await socket.prepare(request)
        line = SocketLine(request, socket)
        if request.headers.get("OpenAI-Beta", "").startswith("realtime"):
            await self._refuse_beta(line)
            return socket
        session = Session(
            identity=new_id("sess"),
            model=model,
            life_s=self._service.config.session_life_s,
        )
        responder = Responder(self._service, call.surface, deployment, line)
        connection = Connection(
            line=line, session=session, recognizer=self._service.recognizer, respond=responder.respond
        )
        responder.connection = connection
        try:
            async with asyncio.timeout(self._service.config.session_life_s):
                await connection.open()
                await self._read(socket, connection)
        except TimeoutError:
            await self._expire(line)
        finally:
            await connection.close()
        return socket

    async def _read(self, socket: web.WebSocketResponse, connection: Connection) -> None:
        async for message in socket:
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                await connection.receive(message.data)

    def _let_in(self, call: Call, request: web.Request, deployment: str | None) -> str:
        """Returns the model of the session, or the refusal of the upgrade."""
        service, surface = self._service, call.surface
        ask = Ask(
            deployment=deployment,
            text="",
            attempt=0,
            identity=f"upgrade {next(self._upgrades)}",
        )
        service.meet_fault(call, request.headers, ask, refuses_upgrades)
        if surface is Surface.AZURE_V1 and "api-version" in request.query:
            raise wrong_key(surface, "")
        service.authorise(call, request.headers, query=request.query)
        dated = dated_version(request.query.get("api-version")) is not None
        if surface is Surface.AZURE_DATED and not dated:
            raise no_such_path(surface, request.method, request.path)
        if not deployment:
            raise invalid("You must provide a model parameter.", "model", "missing_model")
        model = service.find_model(call, deployment)
        if model in CHAT_MODELS and model not in _BOTH:
            raise _no_realtime_model(surface, model)
        if "websocket" not in request.headers.get("Upgrade", "").lower():
            raise by_status(surface, 400)
        return model

    def _refused(
        self, call: Call, refusal: Refusal, request: web.Request, deployment: str | None
    ) -> web.Response:
        journal = self._service.journal
        fault = call.record.fault
        call.record = journal.open(transport="realtime")
        call.record.fault = fault
        journal.identify(call.record, deployment=deployment, hashed=None, retry_count=0)
        journal.answer(call.record, status=refusal.status, billed=False)
        journal.close(call.record, delivered=True)
        logger.debug("upgrade of %s refused: %d", request.path, refusal.status)
        return refused_upgrade(call, refusal)

    async def _refuse_beta(self, line: SocketLine) -> None:
        refusal = invalid(
            "The Realtime Beta API is no longer supported. Please use /v1/realtime for the GA API.",
            None,
            "beta_api_shape_disabled",
        )
        await line.send(error_event(refusal, None))
        await line.close(BETA_CLOSE, f"{refusal.type}.{refusal.code}")

    async def _expire(self, line: SocketLine) -> None:
        minutes = self._service.config.session_life_s / 60
        words = f"Your session hit the maximum duration of {minutes:g} minutes."
        await line.send(error_event(invalid(words, None, "session_expired"), None))
        await line.close(EXPIRED_CLOSE, words)


def _no_realtime_model(surface: Surface, model: str) -> Refusal:
    if surface.is_azure:
        return Refusal(
            status=400,
            gateway=True,
            code="OperationNotSupported",
            message=f"The realtime operation does not work with the specified model, {model}. Please choose "
            "different model and try again.",
        )
    return Refusal(
        status=400,
        param="model",
        code="invalid_model",
        message=f'Model "{model}" is not supported in realtime mode.',
    )
