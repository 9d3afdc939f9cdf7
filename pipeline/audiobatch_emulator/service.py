"""The service behind every route: what it holds, and the way in that HTTP and sockets share.

A request is a `Call`. It is begun, identified (which names its fault), authorised, given its model and
metered, in this order; each step raises the service's `Refusal`. `chat.py` takes these steps for an HTTP
request; a socket takes them for its upgrade and for each response it is asked for.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from audiobatch_emulator.audio_ids import AudioMemory
from audiobatch_emulator.auth import Authenticator, TokenIssuer, bearer_of
from audiobatch_emulator.config import EmulatorConfig
from audiobatch_emulator.faults import NO_FAULT, RULES, Ask, Fault, Faults, Rule
from audiobatch_emulator.identity import Identity
from audiobatch_emulator.journal import Journal, Record
from audiobatch_emulator.quota import Quotas
from audiobatch_emulator.recognition import Recognizer, open_recognizer
from audiobatch_emulator.service_errors import Refusal, by_status, no_deployment, too_many
from audiobatch_emulator.speech import Speech, open_speech
from audiobatch_emulator.surface import RateState, Surface
from audiobatch_emulator.tokens import TokenCounts
from audiobatch_emulator.voicing import Voicing


@dataclass(slots=True, kw_only=True)
class Call:
    """One request under way. `model` and `rate` are known once it has passed that step."""

    surface: Surface
    record: Record
    received_at: float = field(default_factory=time.monotonic)
    model: str | None = None
    fault: Fault = NO_FAULT
    rate: RateState | None = None

    @property
    def elapsed_s(self) -> float:
        """Returns the seconds since the request came in."""
        return time.monotonic() - self.received_at


class Service:
    """All state of one emulator. Nothing here knows a socket or an HTTP request."""

    def __init__(self, config: EmulatorConfig, *, speech: Speech, recognizer: Recognizer) -> None:
        self.config = config
        rules = RULES.validate_json(config.faults.read_bytes()) if config.faults is not None else []
        self.journal = Journal(config.journal)
        self.faults = Faults(rules, seed=config.seed)
        self.quotas = Quotas(config.quotas)
        self.tokens = TokenIssuer(life_s=config.token_life_s)
        self.authenticator = Authenticator(api_key=config.api_key, tokens=self.tokens)
        self.identity = Identity(self.tokens)
        self.memory = AudioMemory(life_s=config.audio_id_life_s)
        self.voicing = Voicing(speech, reply_audio_s=config.reply_audio_s)
        self.speech = speech
        self.recognizer = recognizer
        self.started_at = time.monotonic()

    @classmethod
    def open(cls, config: EmulatorConfig) -> "Service":
        """Opens a service with the voice and the recognizer that the settings ask for."""
        return cls(config, speech=open_speech(config.speech), recognizer=open_recognizer(config.speech))

    async def aclose(self) -> None:
        """Ends the engines and closes the journal."""
        await asyncio.gather(self.speech.aclose(), self.recognizer.aclose(), return_exceptions=True)
        self.journal.close_file()

    def reset(self) -> None:
        """Restores the state of the start: empty journal, the first faults and quotas, no memory of replies."""
        self.journal.reset()
        self.faults.reset()
        self.quotas.reset()
        self.memory.clear()
        self.tokens.reset()

    def begin(self, surface: Surface, *, transport: str) -> Call:
        """Adds a request that is coming in."""
        return Call(surface=surface, record=self.journal.open(transport=transport))

    def identify(
        self,
        call: Call,
        headers: Mapping[str, str],
        *,
        deployment: str | None,
        hashed: str | None,
        text: str = "",
        applies: Callable[[Rule], bool] | None = None,
    ) -> None:
        """Records in the journal what is asked of whom, and looks whether a fault is due.

        Raises:
            Refusal: the fault is a status.
        """
        retries = headers.get("x-stainless-retry-count", "0")
        retry_count = int(retries) if retries.isascii() and retries.isdigit() and len(retries) < 5 else 0
        self.journal.identify(call.record, deployment=deployment, hashed=hashed, retry_count=retry_count)
        ask = Ask(deployment=deployment, text=text, attempt=call.record.attempt, identity=hashed or "")
        self.meet_fault(call, headers, ask, applies)

    def meet_fault(
        self, call: Call, headers: Mapping[str, str], ask: Ask, applies: Callable[[Rule], bool] | None
    ) -> None:
        """Looks whether a fault is due, among those rules that apply (None: all of them).

        Raises:
            Refusal: the fault is a status.
        """
        fault = self.faults.match(ask, applies)
        if fault is None:
            return
        call.fault = fault
        call.record.fault = fault.do.describe()
        if fault.do.expire_tokens:
            self.tokens.expire_all(bearer_of(headers))
        if fault.do.status is not None and not (fault.do.status == 200 and fault.do.body is None):
            raise _refusal_of(fault, call.surface)

    def authorise(
        self, call: Call, headers: Mapping[str, str], *, query: Mapping[str, str] | None = None
    ) -> None:
        """Raises the 401 of this surface unless the caller is known."""
        self.authenticator.admit(call.surface, headers, query=query)

    def find_model(self, call: Call, deployment: str) -> str:
        """Returns the model behind a deployment, or refuses with 404."""
        model = self.config.deployments.get(deployment)
        if model is None:
            raise no_deployment(call.surface, deployment)
        call.model = model
        return model

    def meter(self, call: Call, deployment: str, *, estimated_tokens: int, operation: str) -> None:
        """Takes a request and its estimated tokens from the deployment's quota, or 429."""
        verdict = self.quotas.take(deployment, estimated_tokens)
        if verdict is None:
            return
        call.rate = verdict.rate
        if verdict.refused_for is not None:
            raise too_many(
                call.surface,
                kind=verdict.refused_for,
                operation=operation,
                model=call.model or deployment,
                retry_after_s=verdict.retry_after_s,
                rate=verdict.rate,
            )

    def count(self, call: Call, counts: TokenCounts) -> None:
        """Puts the tokens into the journal's record."""
        record = call.record
        record.input_text_tokens = counts.input_text
        record.input_audio_tokens = counts.input_audio
        record.output_text_tokens = counts.output_text
        record.output_audio_tokens = counts.output_audio

    async def hold(self, call: Call, *, audio_s: float = 0.0, answered: bool) -> None:
        """Waits as long as the settings' latency (of answers only) and the fault's ask, since it came in."""
        wait_s = call.fault.do.wait_s(draw=call.fault.draw, audio_s=audio_s)
        if answered:
            wait_s += self.config.latency_s
        if wait_s > call.elapsed_s:
            await asyncio.sleep(wait_s - call.elapsed_s)


def _refusal_of(fault: Fault, surface: Surface) -> Refusal:
    do = fault.do
    status = do.status or 200
    refusal = by_status(surface, status)
    if do.body is not None:
        refusal.raw = do.body
    # "If the service performs processing, you may be charged even if the status is not 200", as for a content
    # filter or a time-out. Source: MicrosoftDocs, articles/ai-services/openai/how-to/manage-costs.md.
    refusal.billed = status < 300 or status == 408 or _code_of(do.body) == "content_filter"
    return refusal


def _code_of(body: Any) -> Any:
    error = body.get("error") if isinstance(body, dict) else None
    return error.get("code") if isinstance(error, dict) else None
