"""Proof of who calls: an API key, or tokens of Microsoft Entra ID (keyless, recommended).

A token is fetched once for all who wait for it, renewed in good time, and renewed at once when the service
refuses it. Each renewal asks a fresh credential, because credentials keep tokens themselves and would give the
refused one again.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from audiobatch.errors import AuthenticationFailed, Disconnected, keep_secret

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken

#: The scope of Azure OpenAI's tokens.
#: Source: learn.microsoft.com, Azure OpenAI quickstarts, "keyless" (2026-11).
SCOPE = "https://cognitiveservices.azure.com/.default"
#: A token is renewed this long before it ends, or when a quarter of its life is left if it lives shortly.
RENEW_BEFORE_S = 300.0


class _Credential(Protocol):
    async def get_token(self, *scopes: str) -> AccessToken: ...
    async def close(self) -> None: ...


class EntraTokens:
    """Tokens for all calls of one process. An instance is the async callable that the SDK's clients take."""

    def __init__(self) -> None:
        self._token = ""
        self._renew_at_s = 0.0
        self._renewing = asyncio.Lock()
        #: How often the identity service was asked: for the log and for tests.
        self.fetched = 0

    async def __call__(self) -> str:
        """A token that is good now.

        Raises:
            AuthenticationFailed: no credential of the chain gives one; the message lists what was tried.
        """
        if time.time() >= self._renew_at_s:
            async with self._renewing:
                if time.time() >= self._renew_at_s:
                    await self._fetch()
        return self._token

    async def renew(self, refused: str) -> None:
        """Replace a token that the service refused, unless somebody already has."""
        async with self._renewing:
            if self._token == refused:
                await self._fetch()

    @property
    def current(self) -> str:
        return self._token

    async def _fetch(self) -> None:
        from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError
        from azure.identity.aio import DefaultAzureCredential

        credential: _Credential = DefaultAzureCredential()
        try:
            token = await credential.get_token(SCOPE)
        except ClientAuthenticationError as failed:
            raise AuthenticationFailed(f"no keyless credential could be used: {failed.message}") from failed
        except ServiceRequestError as failed:
            raise Disconnected(f"the identity service was not reached: {failed.message}") from failed
        finally:
            await credential.close()
        self.fetched += 1
        life_s = token.expires_on - time.time()
        keep_secret(token.token)
        self._token = token.token
        self._renew_at_s = token.expires_on - min(RENEW_BEFORE_S, life_s / 4)
