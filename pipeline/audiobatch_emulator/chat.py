"""The route of chat completions, under its three URLs."""

import orjson
from aiohttp import web

from audiobatch_emulator.answering import answer_request
from audiobatch_emulator.chat_audio import PREVIEW_VOICES, VOICES
from audiobatch_emulator.chat_messages import all_texts, audio_characters
from audiobatch_emulator.chat_reply import completion
from audiobatch_emulator.chat_request import Dialect, read_request
from audiobatch_emulator.composing import compose
from audiobatch_emulator.config import REALTIME_MODELS, TRANSCRIPTION_MODELS
from audiobatch_emulator.corruption import corrupted_body
from audiobatch_emulator.journal import item_hash
from audiobatch_emulator.outcome import Outcome, refused
from audiobatch_emulator.request_errors import bad_json, invalid
from audiobatch_emulator.service import Call, Service
from audiobatch_emulator.service_errors import engine_failed, no_such_path, wrong_operation
from audiobatch_emulator.streaming import completion_events
from audiobatch_emulator.surface import Surface, dated_version
from audiobatch_emulator.tokens import AUDIO_IN_PER_S, text_tokens

OPERATION = "ChatCompletions_Create"
PATHS = (
    "/openai/deployments/{deployment}/chat/completions",
    "/openai/v1/chat/completions",
    "/v1/chat/completions",
)


class Chat:
    """Answers chat completion requests."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def register(self, app: web.Application) -> None:
        """Adds the routes."""
        for path in PATHS:
            app.router.add_post(path, self.handle)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Handles one request, from its journal record to the last byte of its answer."""
        return await answer_request(self._service, request, transport="chat", complete=self._complete)

    async def _complete(self, call: Call, request: web.Request) -> Outcome:
        service, surface = self._service, call.surface
        body = _parsed(await request.read())
        fields = body if isinstance(body, dict) else {}
        messages = fields.get("messages")
        in_path, in_body = request.match_info.get("deployment"), fields.get("model")
        deployment = in_path or (in_body if isinstance(in_body, str) else None)
        text = all_texts(messages)
        hashed = item_hash(messages) if isinstance(messages, list) else None
        service.identify(call, request.headers, deployment=deployment, hashed=hashed, text=text)
        service.authorise(call, request.headers)
        version = None
        if surface is Surface.AZURE_DATED:
            version = dated_version(request.query.get("api-version"))
            if version is None:
                raise no_such_path(surface, request.method, request.path)
        if body is None:
            raise bad_json()
        if deployment is None:
            raise invalid("you must provide a model parameter", None, None)
        model = service.find_model(call, deployment)
        if model in REALTIME_MODELS + TRANSCRIPTION_MODELS:
            raise wrong_operation(surface, model)
        service.meter(
            call,
            deployment,
            estimated_tokens=_estimate(fields, text, service.config.unstated_max_tokens),
            operation=OPERATION,
        )
        previews_only = service.config.preview_voices_only and model.endswith("-audio-preview")
        dialect = Dialect(
            surface=surface,
            api_version=version,
            voices=PREVIEW_VOICES if previews_only else VOICES,
            max_audio_bytes=service.config.max_audio_bytes,
        )
        asked = read_request(body, dialect)
        if call.fault.do.reset == "before":
            return refused(call, engine_failed())  # never sent: the connection ends before the model runs
        composed = await compose(service, call, asked, model=model)
        service.count(call, composed.reply.counts)
        if asked.stream:
            content_type = "text/event-stream; charset=utf-8"
            pieces = completion_events(
                composed.reply, surface, service.config, include_usage=asked.include_usage
            )
        else:
            content_type = "application/json"
            pieces = completion(composed.reply, surface, filter_results=service.config.azure_filter_results)
        pieces, content_type = corrupted_body(pieces, content_type, call.fault)
        return Outcome(
            status=200,
            content_type=content_type,
            pieces=pieces,
            chunked=asked.stream,
            billed=True,
            audio_s=composed.audio_s,
        )


def _parsed(content: bytes) -> object:
    try:
        parsed: object = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    return parsed


def _estimate(fields: dict[str, object], text: str, unstated: int) -> int:
    """Returns what the gateway reckons before the model runs, from sizes alone: audio as if 24 kHz 16-bit mono."""
    limit = fields.get("max_completion_tokens") or fields.get("max_tokens")
    out = limit if isinstance(limit, int) and not isinstance(limit, bool) else unstated
    audio_s = audio_characters(fields.get("messages")) * 3 / 4 / 48_000
    return text_tokens(text) + round(audio_s * AUDIO_IN_PER_S) + max(0, out)
