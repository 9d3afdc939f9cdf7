"""Check what a run needs. Each finding is ok or failed, and says what to do; no secret is ever shown.

Only `call=True` costs money: one short question to each deployment.
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

from audiobatch.address import Address, parse_location
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
#: A larger error fails: the service checks a token's times, and waits can be given as HTTP dates.
MAX_CLOCK_ERROR_S = 60.0
_REINSTALL = "reinstall audiobatch with the versions that it requires"
_OPENAI = "https://api.openai.com"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check.

    Attributes:
        what: what was checked.
        message: what was found.
        advice: what to do where it failed.
    """

    what: str
    ok: bool
    message: str
    advice: str = ""


async def examine(spec: JobSpec, *, call: bool = False) -> AsyncIterator[Finding]:
    """Run all checks, in the order in which a run would need them.

    Args:
        spec: the job.
        call: also send one short question to each deployment, which costs a little.
    """
    yield await asyncio.to_thread(_codecs)
    yield _ffmpeg()
    yield _output(spec)
    try:
        settings.check_service(spec)
        targets = targets_of(spec)
    except ConfigError as failed:
        yield Finding(what="service", ok=False, message=failed.message, advice="see `audiobatch config show`")
        return
    for target in targets:
        if target.provider == "local":
            yield Finding(what=target.name, ok=True, message="the local emulator: no account, no cost")
            continue
        yield await _credential(target)
        yield await asyncio.to_thread(_endpoint, target)
        yield _price(target)
        if call:
            yield await _call(spec, target)


def _codecs() -> Finding:
    """Decode and encode every format: an installed library may lack a codec."""
    try:
        from audiobatch.audio.codec_check import check_codecs

        codecs = check_codecs()
    except ImportError as missing:
        return Finding(what="codecs", ok=False, message=str(missing), advice=_REINSTALL)
    if codecs.failed:
        return Finding(what="codecs", ok=False, message="; ".join(codecs.failed), advice=_REINSTALL)
    message = f"reads {', '.join(codecs.read)}; writes {', '.join(codecs.written)}"
    return Finding(what="codecs", ok=True, message=message)


def _ffmpeg() -> Finding:
    path = shutil.which("ffmpeg")
    message = path or "not installed, and not needed: PyAV includes it"
    return Finding(what="ffmpeg", ok=True, message=message)


def _output(spec: JobSpec) -> Finding:
    named = spec.output or (output_name(spec.inputs) if spec.inputs else None) or "outputs"
    location = parse_location(str(named))
    if isinstance(location, Address):
        return _remote_output(location)
    folder = location.resolve()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            free_gb = shutil.disk_usage(folder).free / 1e9
    except OSError as failed:
        advice = "name another folder with --output, or change its permissions"
        return Finding(what="output", ok=False, message=f"{named}: {failed.strerror}", advice=advice)
    return Finding(what="output", ok=True, message=f"{named} can be written, {free_gb:.1f} GB free")


def _remote_output(address: Address) -> Finding:
    """Write and delete a small object, as a run does first."""
    try:
        storage_of(address).probe_writable()
    except ConfigError as failed:
        advice = 'see the README\'s "Remote storage" for what each store needs'
        return Finding(what="output", ok=False, message=failed.message, advice=advice)
    return Finding(what="output", ok=True, message=f"{address} can be written")


async def _credential(target: Target) -> Finding:
    what = f"{target.name}: credential"
    assert target.credential is not None
    if target.credential.kind == "key":
        return Finding(what=what, ok=True, message=f"key from {target.credential.origin}")
    from audiobatch.transports.auth import EntraTokens

    try:
        token = await EntraTokens()()
    except AudioBatchError as failed:
        advice = "run `az login`, or set AZURE_OPENAI_API_KEY"
        return Finding(what=what, ok=False, message=failed.message.splitlines()[0], advice=advice)
    claims = _claims(token)
    ends = claims.get("exp")
    life_s = ends - time.time() if isinstance(ends, (int, float)) else 0.0
    life = f", valid for {life_s / 60:.0f} min" if life_s > 0 else ""
    message = f"Microsoft Entra ID, tenant {claims.get('tid', 'unknown')}{life}"
    return Finding(what=what, ok=True, message=message)


def _claims(token: str) -> dict[str, object]:
    """Return a token's claims; empty where it is not a JWT."""
    with contextlib.suppress(IndexError, ValueError, binascii.Error):
        middle = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
        if isinstance(claims, dict):
            return claims
    return {}


def _endpoint(target: Target) -> Finding:
    """Connect and read the Date header, which checks the address, the certificate and this machine's clock."""
    what = f"{target.name}: endpoint"
    address = urlsplit(target.endpoint or _OPENAI)
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
            server_date = connection.getresponse().getheader("Date")
    except (OSError, http.client.HTTPException) as failed:
        return Finding(what=what, ok=False, message=f"{host} cannot be reached: {failed}", advice=advice)
    clock_error_s = 0.0
    if server_date:
        with contextlib.suppress(ValueError, TypeError):
            clock_error_s = (datetime.now(UTC) - parsedate_to_datetime(server_date)).total_seconds()
    if abs(clock_error_s) > MAX_CLOCK_ERROR_S:
        direction = "ahead" if clock_error_s > 0 else "behind"
        message = f"{host} is reached, but this machine's clock is {abs(clock_error_s):.0f} s {direction}"
        advice = "set the clock: the service refuses tokens whose times do not fit"
        return Finding(what=what, ok=False, message=message, advice=advice)
    return Finding(what=what, ok=True, message=f"{host} is reached, the clocks agree")


def _price(target: Target) -> Finding:
    what = f"{target.name}: price"
    price, model = target.price, target.model
    if price is None:
        advice = "give `price` in [[deployments]] or a table with --prices; cost limits need it"
        return Finding(what=what, ok=False, message=f"not known for model {model}", advice=advice)
    if price.retires is not None and price.retires <= datetime.now(UTC).date():
        message = f"the retirement date of model {model} was {price.retires.isoformat()}"
        advice = "name the model that the deployment has now with --model"
        return Finding(what=what, ok=False, message=message, advice=advice)
    retires = f"; it retires on {price.retires.isoformat()}" if price.retires else ""
    return Finding(what=what, ok=True, message=f"known for {model}, as of {price_table().as_of}{retires}")


async def _call(spec: JobSpec, target: Target) -> Finding:
    """Send one short question and have it answered aloud."""
    from audiobatch.transports.auth import EntraTokens
    from audiobatch.transports.factory import open_transport

    assert target.credential is not None
    is_keyless = target.credential.kind == "entra"
    transport = open_transport(
        target.settings(spec),
        endpoint=target.endpoint,
        deployment=target.deployment,
        key=target.credential.key,
        tokens=EntraTokens() if is_keyless else None,
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
    what = f"{target.name}: call"
    try:
        reply = await transport.send(request)
    except AudioBatchError as failed:
        advice = _ADVICE.get(failed.error_type.value, "")
        return Finding(what=what, ok=False, message=failed.message, advice=advice)
    finally:
        await transport.aclose()
    cost = target.cost_usd(reply.usage)
    price = f", ${cost:.4f}" if cost is not None else ""
    return Finding(what=what, ok=True, message=f"answered in {reply.latency_s:.1f} s{price}")


_ADVICE = {
    "authentication": "the resource does not accept the credential: check the key, or `az account show`",
    "permission": "assign yourself the role Cognitive Services OpenAI User on the resource",
    "deployment": "check --deployment, --endpoint and the API version",
    "credit": "see the account's billing page",
    "rate_limited": "the quota is in use; a run would wait",
    "disconnected": "check the network",
}
