"""One HTTP request of the service, from its journal record to the last byte of its answer, whatever it asks for."""

import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from audiobatch_emulator.delivery import close_connection, deliver, no_answer, reset_connection
from audiobatch_emulator.outcome import Outcome, headers_of, refused
from audiobatch_emulator.recognition import EngineCrashed
from audiobatch_emulator.request_errors import bad_json
from audiobatch_emulator.service import Call, Service
from audiobatch_emulator.service_errors import Refusal, by_status, engine_failed
from audiobatch_emulator.surface import surface_of

logger = logging.getLogger(__name__)

Complete = Callable[[Call, web.Request], Awaitable[Outcome]]


async def answer_request(
    service: Service, request: web.Request, *, transport: str, complete: Complete
) -> web.StreamResponse:
    """Answers a request.

    Args:
        service: who answers.
        request: as it came.
        transport: what the journal calls it.
        complete: makes the answer; what it raises becomes a refusal or a 500.
    """
    call = service.begin(surface_of(request.path), transport=transport)
    delivered = False
    try:
        answered = await _completed(call, request, complete)
        await service.hold(call, audio_s=answered.audio_s, answered=answered.billed)
        do = call.fault.do
        if do.reset == "before":
            reset_connection(request)
            return no_answer()
        service.journal.answer(call.record, status=answered.status, billed=answered.billed)
        if do.corrupt == "close":
            close_connection(request)
            return no_answer()
        response, delivered = await deliver(
            request,
            status=answered.status,
            headers=headers_of(call, answered),
            pieces=answered.pieces,
            chunked=answered.chunked,
            do=do,
        )
        return response
    except ConnectionError:  # the client went away while it was still sending
        return no_answer()
    finally:
        service.journal.close(call.record, delivered=delivered)


async def _completed(call: Call, request: web.Request, complete: Complete) -> Outcome:
    try:
        return await complete(call, request)
    except Refusal as refusal:
        return refused(call, refusal)
    except web.HTTPException as error:  # a body that is too large
        return refused(call, by_status(call.surface, error.status))
    except web.RequestPayloadError:  # a body that breaks off, or is chunked wrongly
        return refused(call, bad_json())
    except ConnectionError:
        raise
    except EngineCrashed as error:
        logger.warning("request %d: %s", call.record.n, error)
        return refused(call, engine_failed())
    except Exception:
        # A defect of ours: one failed request, not a dead server.
        logger.exception("request %d failed", call.record.n)
        return refused(call, engine_failed())
