"""Who may call: API keys and Entra tokens, as each surface takes them.

    surface      api-key header   Bearer, a JWT        Bearer, anything else
    Azure dated  the key          an Entra token       refused as a bad token
    Azure v1     the key          an Entra token       the key
    OpenAI       -                the key              the key

Where `api-key` and a bearer both come, `api-key` alone is looked at. A token's signature is not verified
(there is no tenant to ask); its `aud`, `exp` and `nbf` are.

Source: learn.microsoft.com, Azure OpenAI "API version lifecycle" (key as bearer on v1); the official SDKs'
requests as seen on the wire: openai-python 3.51, openai-node 6.49 and 7.55.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from audiobatch_emulator.service_errors import no_role, wrong_key, wrong_token
from audiobatch_emulator.surface import Surface

#: Who an Azure token must be for: the scope without `/.default`, and the service's application id.
AUDIENCES = frozenset(
    {
        "https://cognitiveservices.azure.com",
        "https://ai.azure.com",
        "7d312290-28c8-473c-a0ed-8e53749b6d6d",
    }
)
CLOCK_SKEW_S = 0.0
_SERIAL = "emulator_serial"


def _b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def claims_of(token: str) -> dict[str, Any] | None:
    """Returns the claims of a JWT, or None where it is no JWT. The signature is not looked at."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        decoded = [base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in parts[:2]]
        header, claims = (orjson.loads(part) for part in decoded)
    except (binascii.Error, ValueError):
        return None
    return claims if isinstance(header, dict) and isinstance(claims, dict) else None


class TokenIssuer:
    """Issues Entra-like tokens and judges those that are shown."""

    def __init__(self, *, life_s: float, now: Callable[[], float] = time.time) -> None:
        self._life_s = life_s
        self._now = now
        self._secret = secrets.token_bytes(32)
        self._serial = 0
        self._valid_from_serial = 0
        self._revoked: set[str] = set()

    def issue(self, resource: str) -> tuple[str, float]:
        """Returns a token for `resource`, and when it ends (seconds since the epoch)."""
        self._serial += 1
        now = self._now()
        expires_at = now + self._life_s
        claims = {
            "aud": resource,
            "iss": "https://sts.windows.net/emulator/",
            "iat": int(now),
            "nbf": int(now),
            "exp": expires_at,
            "oid": "00000000-0000-0000-0000-00000000e111",
            "uti": secrets.token_urlsafe(12),
            _SERIAL: self._serial,
        }
        signed = f"{_b64url(orjson.dumps({'typ': 'JWT', 'alg': 'HS256'}))}.{_b64url(orjson.dumps(claims))}"
        signature = hmac.digest(self._secret, signed.encode(), hashlib.sha256)
        return f"{signed}.{_b64url(signature)}", expires_at

    def expire_all(self, shown: str | None = None) -> None:
        """Ends every token issued so far, and `shown`, wherever it came from."""
        self._valid_from_serial = self._serial + 1
        if shown is not None:
            self._revoked.add(shown)

    def reset(self) -> None:
        """Forgets what was ended before its time."""
        self._valid_from_serial = 0
        self._revoked.clear()

    def check(self, token: str) -> None:
        """Raises the service's refusal unless the token is good now."""
        claims = claims_of(token)
        if claims is None or token in self._revoked:
            raise wrong_token()
        serial = claims.get(_SERIAL)
        if isinstance(serial, int) and serial < self._valid_from_serial:
            raise wrong_token()
        audience = claims.get("aud")
        if not isinstance(audience, str) or audience.rstrip("/") not in AUDIENCES:
            raise wrong_token()
        expires_at, not_before = claims.get("exp"), claims.get("nbf", 0)
        if not isinstance(expires_at, int | float) or not isinstance(not_before, int | float):
            raise wrong_token()
        now = self._now()
        if now >= expires_at + CLOCK_SKEW_S or now < not_before - CLOCK_SKEW_S:
            raise wrong_token()
        if claims.get("roles") == []:
            raise no_role(str(claims.get("oid", "unknown")))


def bearer_of(headers: Mapping[str, str]) -> str | None:
    """Returns what follows `Bearer` in the Authorization header."""
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else None


class Authenticator:
    """Lets a request in, or raises the surface's own 401."""

    def __init__(self, *, api_key: str, tokens: TokenIssuer) -> None:
        self._api_key = api_key.encode()
        self.tokens = tokens

    def admit(
        self, surface: Surface, headers: Mapping[str, str], *, query: Mapping[str, str] | None = None
    ) -> None:
        """Returns when the caller is known.

        `query` is given for sockets only: there the key may also be the `api-key` parameter.

        Raises:
            Refusal: 401, in the body that this surface uses for this credential.
        """
        bearer = bearer_of(headers)
        if surface is not Surface.OPENAI:
            key = headers.get("api-key") or (query or {}).get("api-key")
            if key is not None:
                return self._check_key(surface, key)
            if bearer is None:
                raise wrong_key(surface, "")
            if claims_of(bearer) is not None or surface is Surface.AZURE_DATED:
                return self.tokens.check(bearer)
        return self._check_key(surface, bearer or "")

    def _check_key(self, surface: Surface, key: str) -> None:
        if not hmac.compare_digest(key.encode("utf-8", "surrogateescape"), self._api_key):
            raise wrong_key(surface, key)
