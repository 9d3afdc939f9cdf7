"""Is everything there that a run needs? Each check says ok or failed, and what to do; no secret is ever shown.

Only `call=True` costs anything: one short question to each deployment.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import http.client
import json
import shutil
import ssl
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from audiobatch.address import Address, place_of
from audiobatch.config import settings
from audiobatch.config.prices import price_table
from audiobatch.config.targets import targets_of
from audiobatch.errors import AudioBatchError, ConfigError
from audiobatch.model import Request
from audiobatch.storage.output import output_name, storage_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.config.targets import Target

TIMEOUT_S = 10.0
#: A token's times are checked by the service, and HTTP dates of waits are read: more than this is told.
LARGEST_CLOCK_ERROR_S = 60.0
_INSTALL_AGAIN = "install audiobatch again with the versions that it names"
_OPENAI = "https://api.openai.com"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor's.

    Attributes:
        advice: what to do where it is not ok.
    """

    what: str
    ok: bool
    words: str
    advice: str = ""


async def examine(spec: JobSpec, *, call: bool = False) -> AsyncIterator[Finding]:
    """All checks, in the order in which a run would meet them."""
    yield await asyncio.to_thread(_codecs)
    yield _ffmpeg()
    yield _output(spec)
    try:
        settings.check_service(spec)
        targets = targets_of(spec)
    except ConfigError as failed:
        yield Finding(what="service", ok=False, words=failed.message, advice="see `audiobatch config show`")
        return
    for one in targets:
        if one.provider == "local":
            yield Finding(what=one.name, ok=True, words="the local emulator: no account, no cost")
            continue
        yield await _credential(one)
        yield await asyncio.to_thread(_reachable, one)
        yield _price(one)
        if call:
            yield await _call(spec, one)


def _codecs() -> Finding:
    """Every format is decoded and encoded here: a library that is present may still be unfit."""
    try:
        from audiobatch.audio.codec_check import check_codecs

        found = check_codecs()
    except ImportError as missing:
        return Finding(what="codecs", ok=False, words=str(missing), advice=_INSTALL_AGAIN)
    if found.failed:
        return Finding(what="codecs", ok=False, words="; ".join(found.failed), advice=_INSTALL_AGAIN)
    words = f"reads {', '.join(found.read)}; writes {', '.join(found.written)}"
    return Finding(what="codecs", ok=True, words=words)


def _ffmpeg() -> Finding:
    found = shutil.which("ffmpeg")
    return Finding(
        what="ffmpeg", ok=True, words=found or "not installed; it is not needed, PyAV brings its own"
    )


def _output(spec: JobSpec) -> Finding:
    named = spec.output or (output_name(spec.inputs) if spec.inputs else None) or "outputs"
    place = place_of(str(named))
    if isinstance(place, Address):
        return _remote_output(place)
    there = place.resolve()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.NamedTemporaryFile(dir=there):
            free_gb = shutil.disk_usage(there).free / 1e9
    except OSError as failed:
        advice = "name another folder with --output, or change its permissions"
        return Finding(what="output", ok=False, words=f"{named}: {failed.strerror}", advice=advice)
    return Finding(what="output", ok=True, words=f"{named} can be written, {free_gb:.1f} GB free")


def _remote_output(place: Address) -> Finding:
    """Puts and deletes a small object, as a run does first of all."""
    try:
        storage_of(place).probe_writable()
    except ConfigError as failed:
        advice = 'see the README\'s "Remote storage" for what each store needs'
        return Finding(what="output", ok=False, words=failed.message, advice=advice)
    return Finding(what="output", ok=True, words=f"{place} can be written")


async def _credential(one: Target) -> Finding:
    what = f"{one.name}: credential"
    assert one.credential is not None
    if one.credential.kind == "key":
        return Finding(what=what, ok=True, words=f"key from {one.credential.origin}")
    from audiobatch.transports.auth import EntraTokens

    try:
        token = await EntraTokens()()
    except AudioBatchError as failed:
        advice = "run `az login`, or set AZURE_OPENAI_API_KEY"
        return Finding(what=what, ok=False, words=failed.message.splitlines()[0], advice=advice)
    claims = _claims(token)
    ends = claims.get("exp")
    life_s = ends - time.time() if isinstance(ends, (int, float)) else 0.0
    life = f", good for {life_s / 60:.0f} min" if life_s > 0 else ""
    return Finding(
        what=what, ok=True, words=f"Microsoft Entra ID, tenant {claims.get('tid', 'unknown')}{life}"
    )


def _claims(token: str) -> dict[str, object]:
    """What a token says of itself; empty where it is no JWT."""
    with contextlib.suppress(IndexError, ValueError, binascii.Error):
        middle = token.split(".")[1]
        found = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
        if isinstance(found, dict):
            return found
    return {}


def _reachable(one: Target) -> Finding:
    """Connects and reads the Date header: the address, the certificate, and this machine's clock."""
    what = f"{one.name}: endpoint"
    address = urlsplit(one.endpoint or _OPENAI)
    host = address.hostname or ""
    advice = "check the address, the network, the proxy and SSL_CERT_FILE"
    try:
        connection: http.client.HTTPConnection
        if address.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(host, address.port, timeout=TIMEOUT_S, context=context)
        else:
            connection = http.client.HTTPConnection(host, address.port, timeout=TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request("HEAD", "/")
            said = connection.getresponse().getheader("Date")
    except (OSError, http.client.HTTPException) as failed:
        return Finding(what=what, ok=False, words=f"{host} is not reached: {failed}", advice=advice)
    off_s = 0.0
    if said:
        with contextlib.suppress(ValueError, TypeError):
            off_s = (datetime.now(UTC) - parsedate_to_datetime(said)).total_seconds()
    if abs(off_s) > LARGEST_CLOCK_ERROR_S:
        way = "ahead" if off_s > 0 else "behind"
        words = f"{host} is reached, but this machine's clock is {abs(off_s):.0f} s {way}"
        return Finding(
            what=what, ok=False, words=words, advice="set the clock: tokens are refused by their times"
        )
    return Finding(what=what, ok=True, words=f"{host} is reached, the clocks agree")


def _price(one: Target) -> Finding:
    what = f"{one.name}: price"
    if one.price is None:
        advice = "give `price` in [[deployments]] or a table with --prices; cost limits need it"
        return Finding(what=what, ok=False, words=f"none is known for model {one.model}", advice=advice)
    if one.price.retires is not None and one.price.retires <= datetime.now(UTC).date():
        words = f"model {one.model} was to be retired on {one.price.retires.isoformat()}"
        return Finding(
            what=what, ok=False, words=words, advice="name the model that is behind it with --model"
        )
    dated = price_table().as_of
    ends = f"; it retires on {one.price.retires.isoformat()}" if one.price.retires else ""
    return Finding(what=what, ok=True, words=f"known for {one.model}, as of {dated}{ends}")


async def _call(spec: JobSpec, one: Target) -> Finding:
    """One short question, answered aloud."""
    from audiobatch.transports.auth import EntraTokens
    from audiobatch.transports.factory import open_transport

    assert one.credential is not None
    keyless = one.credential.kind == "entra"
    transport = open_transport(
        one.settings(spec),
        endpoint=one.endpoint,
        deployment=one.deployment,
        key=one.credential.key,
        tokens=EntraTokens() if keyless else None,
    )
    request = Request(
        item_id="doctor",
        turn=1,
        system="",
        history=(),
        text="Say: ready.",
        audio=None,
        modalities=("text", "audio"),
        voice=spec.voice,
        format="wav",
        max_completion_tokens=200,
    )
    what = f"{one.name}: call"
    try:
        reply = await transport.send(request)
    except AudioBatchError as failed:
        return Finding(
            what=what, ok=False, words=failed.message, advice=_ADVICE.get(failed.error_type.value, "")
        )
    finally:
        await transport.aclose()
    cost = one.cost_usd(reply.usage)
    price = f", ${cost:.4f}" if cost is not None else ""
    return Finding(what=what, ok=True, words=f"answered in {reply.latency_s:.1f} s{price}")


_ADVICE = {
    "authentication": "the credential is not this resource's: check the key, or `az account show`",
    "permission": "give yourself the role Cognitive Services OpenAI User on the resource",
    "deployment": "check --deployment, --endpoint and the API version",
    "credit": "see the account's billing page",
    "rate_limited": "the quota is in use; a run would wait",
    "disconnected": "check the network",
}
