"""The route of transcriptions, under its three URLs: a recording in, its words out."""

import hashlib

from aiohttp import web
from multidict import MultiDictProxy

from audiobatch_emulator.answering import answer_request
from audiobatch_emulator.config import TRANSCRIPTION_MODELS, WHISPER_MODELS
from audiobatch_emulator.corruption import corrupted_body
from audiobatch_emulator.outcome import Outcome, refused
from audiobatch_emulator.recognition import Undecodable
from audiobatch_emulator.request_errors import invalid
from audiobatch_emulator.service import Call, Service
from audiobatch_emulator.service_errors import engine_failed, no_such_path, wrong_operation
from audiobatch_emulator.surface import Surface, dated_version
from audiobatch_emulator.tokens import AUDIO_IN_PER_S, text_tokens
from audiobatch_emulator.transcription_reply import counts_of, transcription
from audiobatch_emulator.transcription_request import (
    LONGEST_S,
    MOST_BODY_BYTES,
    read_transcription,
    too_large,
    too_long,
    wrong_file,
)

OPERATION = "audio_transcription"
PATHS = (
    "/openai/deployments/{deployment}/audio/transcriptions",
    "/openai/v1/audio/transcriptions",
    "/v1/audio/transcriptions",
)


class Transcriptions:
    """Writes down what is said in recordings."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def register(self, app: web.Application) -> None:
        """Adds the routes."""
        for path in PATHS:
            app.router.add_post(path, self.handle)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Handles one request, from its journal record to the last byte of its answer."""
        return await answer_request(
            self._service, request, transport="transcription", complete=self._transcribe
        )

    async def _transcribe(self, call: Call, request: web.Request) -> Outcome:
        service, surface = self._service, call.surface
        form = await _form_of(request)
        in_path, in_form = request.match_info.get("deployment"), form.get("model")
        deployment = in_path or (in_form if isinstance(in_form, str) and in_form else None)
        file = form.get("file")
        audio = file.file.read() if isinstance(file, web.FileField) else b""
        service.identify(
            call,
            request.headers,
            deployment=deployment,
            hashed=hashlib.sha256(audio).hexdigest(),
            text=file.filename if isinstance(file, web.FileField) else "",
        )
        service.authorise(call, request.headers)
        if surface is Surface.AZURE_DATED and dated_version(request.query.get("api-version")) is None:
            raise no_such_path(surface, request.method, request.path)
        size_bytes = request.content_length or len(audio)
        if size_bytes > MOST_BODY_BYTES:
            raise too_large(size_bytes)
        if deployment is None:
            raise invalid("you must provide a model parameter", None, None)
        model = service.find_model(call, deployment)
        if model not in TRANSCRIPTION_MODELS:
            raise wrong_operation(surface, model, "audioTranscription")
        if isinstance(file, web.FileField):
            file.file.seek(0)
        asked = read_transcription(form, [*map(str, form.getall("timestamp_granularities[]", []))], model)
        estimated = round(len(asked.audio) / 48_000 * AUDIO_IN_PER_S) + text_tokens(asked.prompt)
        service.meter(call, deployment, estimated_tokens=estimated, operation=OPERATION)
        if call.fault.do.reset == "before":
            return refused(call, engine_failed())  # never sent: the connection ends before the model runs
        try:
            hearing = await service.recognizer.hear(asked.audio)
        except Undecodable:
            raise wrong_file() from None
        if model not in WHISPER_MODELS and hearing.duration_s > LONGEST_S:
            raise too_long(hearing.duration_s)
        service.count(call, counts_of(hearing, asked, model))
        content, content_type = transcription(hearing, asked, model)

        pieces, content_type = corrupted_body([content], content_type, call.fault)
        return Outcome(
            status=200,
            content_type=content_type,
            pieces=pieces,
            billed=True,
            audio_s=hearing.duration_s,
        )


async def _form_of(request: web.Request) -> MultiDictProxy[str | bytes | bytearray | web.FileField]:
    if not request.content_type.startswith("multipart/"):
        raise invalid("Could not parse multipart form: the request must be multipart/form-data.", None, None)
    try:
        return await request.post()
    except ValueError:
        raise invalid("Could not parse multipart form.", None, None) from None
