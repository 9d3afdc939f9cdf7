"""Fetch tokens of Microsoft Entra ID, the keyless alternative to an API key.

A token is fetched once for all calls that wait for it. It is renewed before it expires, and at once when the
service refuses it. Each renewal makes a new credential: a credential caches its token and would return the refused
one again.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from audiobatch.errors import AuthenticationFailed, Disconnected, register_secret

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken

#: The scope of Azure OpenAI's tokens.
#: Source: learn.microsoft.com, Azure OpenAI quickstarts, "keyless" (2026-11).
SCOPE = "https://cognitiveservices.azure.com/.default"
#: A token is renewed this long before it expires; a short-lived one when a quarter of its life is left.
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
        #: How many tokens were fetched: for the log and for tests.
        self.fetched = 0

    async def __call__(self) -> str:
        """Return a token that has not expired.

        Raises:
            AuthenticationFailed: no credential of the chain has one; the message lists what was tried.
            Disconnected: the identity service was not reached.
        """
        if time.time() >= self._renew_at_s:
            async with self._renewing:
                if time.time() >= self._renew_at_s:
                    await self._fetch()
        return self._token

    async def renew(self, refused: str) -> None:
        """Replace a token that the service refused, unless another call has done so."""
        async with self._renewing:
            if self._token == refused:
                await self._fetch()

    @property
    def current(self) -> str:
        """The last token; empty before the first."""
        return self._token

    async def _fetch(self) -> None:
        from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError
        from azure.identity.aio import DefaultAzureCredential

        credential: _Credential = DefaultAzureCredential()
        try:
            token = await credential.get_token(SCOPE)
        except ClientAuthenticationError as error:
            raise AuthenticationFailed(f"no keyless credential could be used: {error.message}") from error
        except ServiceRequestError as error:
            raise Disconnected(f"the identity service was not reached: {error.message}") from error
        finally:
            await credential.close()
        self.fetched += 1
        life_s = token.expires_on - time.time()
        register_secret(token.token)
        self._token = token.token
        self._renew_at_s = token.expires_on - min(RENEW_BEFORE_S, life_s / 4)
