"""The administrative surface: faults, quotas, the journal, health.

It has no key: the emulator binds to loopback unless it is told otherwise.
"""

import time
from typing import Any

import orjson
from aiohttp import web
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from audiobatch_emulator.config import Quota
from audiobatch_emulator.faults import RULES
from audiobatch_emulator.service import Service

PREFIX = "/_emulator"


class _QuotaIn(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    rpm: int | None = None
    tpm: int | None = None


_QUOTAS: TypeAdapter[dict[str, _QuotaIn]] = TypeAdapter(dict[str, _QuotaIn])


class Admin:
    """Reads and changes what the emulator does."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def register(self, app: web.Application) -> None:
        """Adds the routes."""
        router = app.router
        router.add_get(f"{PREFIX}/health", self.health)
        router.add_get(f"{PREFIX}/journal", self.journal)
        router.add_get(f"{PREFIX}/faults", self.faults)
        router.add_put(f"{PREFIX}/faults", self.set_faults)
        router.add_get(f"{PREFIX}/quotas", self.quotas)
        router.add_put(f"{PREFIX}/quotas", self.set_quotas)
        router.add_post(f"{PREFIX}/reset", self.reset)

    async def health(self, _request: web.Request) -> web.Response:
        """Answers that the emulator lives, and for how long."""
        service = self._service
        return _json({"status": "ok", "uptime_s": round(time.monotonic() - service.started_at, 3)})

    async def journal(self, _request: web.Request) -> web.Response:
        """Returns all records, one a request."""
        return _json(self._service.journal.records())

    async def faults(self, _request: web.Request) -> web.Response:
        """Returns the rules in force."""
        return web.Response(
            body=RULES.dump_json(self._service.faults.rules, exclude_defaults=True),
            content_type="application/json",
        )

    async def set_faults(self, request: web.Request) -> web.Response:
        """Replaces the rules; `[]` ends all faults."""
        try:
            rules = RULES.validate_json(await request.read())
        except ValidationError as error:
            return _not_valid(error)
        self._service.faults.set(rules)
        return await self.faults(request)

    async def quotas(self, _request: web.Request) -> web.Response:
        """Returns the quotas in force."""
        return _json(
            {name: {"rpm": q.rpm, "tpm": q.tpm} for name, q in self._service.quotas.current().items()}
        )

    async def set_quotas(self, request: web.Request) -> web.Response:
        """Changes the quotas of the deployments named; `null` lifts one."""
        try:
            given = _QUOTAS.validate_json(await request.read())
            quotas = {name: Quota(rpm=quota.rpm, tpm=quota.tpm) for name, quota in given.items()}
        except ValueError as error:
            return _not_valid(error)
        self._service.quotas.change(quotas)
        return await self.quotas(request)

    async def reset(self, _request: web.Request) -> web.Response:
        """Restores the state of the start."""
        self._service.reset()
        return _json({"status": "reset"})


def _json(value: Any) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json")


def _not_valid(error: ValueError) -> web.Response:
    return web.Response(
        body=orjson.dumps({"error": {"message": str(error)}}), status=400, content_type="application/json"
    )
