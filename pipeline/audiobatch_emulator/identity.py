"""The identity endpoints that keyless clients ask for tokens: App Service's and the virtual machine's.

    IDENTITY_ENDPOINT=<http>/_emulator/identity  IDENTITY_HEADER=<secret>     the App Service way
    AZURE_POD_IDENTITY_AUTHORITY_HOST=<http>                                  the IMDS way

Source: learn.microsoft.com, "How to use managed identities for App Service" (REST protocol, 2019-08-01) and
"How to use managed identities on a VM to acquire an access token". Seen: azure-identity 1.27 for Python
(sync, async) and 4.13 for Node; Node asks IMDS with a trailing slash; Python first asks without the
`Metadata` header and expects an error.
"""

import secrets
import time

from aiohttp import web

from audiobatch_emulator.auth import TokenIssuer

APP_SERVICE_PATH = "/_emulator/identity"
IMDS_PATH = "/metadata/identity/oauth2/token"


class Identity:
    """Answers requests for tokens, which the token issuer issues."""

    def __init__(self, tokens: TokenIssuer) -> None:
        self._tokens = tokens
        self.header = secrets.token_hex(16)

    def register(self, app: web.Application) -> None:
        """Adds both endpoints."""
        app.router.add_get(APP_SERVICE_PATH, self.app_service)
        app.router.add_get(IMDS_PATH, self.imds)
        app.router.add_get(IMDS_PATH + "/", self.imds)

    async def app_service(self, request: web.Request) -> web.Response:
        """Answers by the App Service protocol, version 2019-08-01."""
        if not secrets.compare_digest(
            request.headers.get("X-IDENTITY-HEADER", "").encode(), self.header.encode()
        ):
            return _error(401, "Unauthorized", "The X-IDENTITY-HEADER is missing or wrong.")
        return self._token(request)

    async def imds(self, request: web.Request) -> web.Response:
        """Answers by the virtual machine's protocol, version 2018-02-01."""
        if request.headers.get("Metadata", "").lower() != "true":
            return _error(400, "invalid_request", "Required metadata header not specified")
        return self._token(request)

    def _token(self, request: web.Request) -> web.Response:
        resource = request.query.get("resource", "")
        if not resource:
            return _error(400, "invalid_request", "The parameter resource is missing.")
        token, expires_at = self._tokens.issue(resource)
        return web.json_response(
            {
                "access_token": token,
                "expires_in": str(max(0, int(expires_at - time.time()))),
                "expires_on": str(int(expires_at)),
                "not_before": str(int(time.time())),
                "resource": resource,
                "token_type": "Bearer",
                "client_id": "00000000-0000-0000-0000-00000000c11e",
            }
        )


def _error(status: int, code: str, words: str) -> web.Response:
    return web.json_response({"error": code, "error_description": words}, status=status)
