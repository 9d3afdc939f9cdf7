"""The service's refusals: what it says, in which body, with which status.

A refusal is raised as `Refusal` and becomes a body only when the surface is known, since Azure's gateway
speaks of `code` and `message` alone where OpenAI has four fields. Texts are the service's own, as found in
public reports; the sources stand at each.
"""

from dataclasses import dataclass, field
from typing import Any

from audiobatch_emulator.surface import RateState, Surface


@dataclass(kw_only=True, eq=False)  # not frozen: Python itself sets an exception's traceback
class Refusal(Exception):
    """An answer other than the one asked for.

    `gateway` refusals come from Azure's gateway and have its two-field body there; the others come from the
    model's own service and have four fields everywhere. `raw` replaces the body altogether.
    """

    status: int
    message: str
    type: str | None = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    gateway: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    raw: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    rate: RateState | None = None
    billed: bool = False

    def body(self, surface: Surface) -> Any:
        """Returns the JSON body, ready to encode."""
        if self.raw is not None:
            return self.raw
        if self.gateway and surface.is_azure:
            return {"error": {"code": self.code or str(self.status), "message": self.message}}
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error | self.extra}


def wrong_key(surface: Surface, shown: str) -> Refusal:
    """Builds a 401 for a key. Source: github.com/SciSharp/BotSharp/issues/386; OpenAI's guide to error codes."""
    if surface.is_azure:
        return Refusal(
            status=401,
            gateway=True,
            code="401",
            message="Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide "
            "a valid key for an active subscription and use a correct regional API endpoint for your resource.",
        )
    if not shown:
        return Refusal(
            status=401,
            message="You didn't provide an API key. You need to provide your API key in an Authorization header "
            "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
        )
    masked = f"{shown[:4]}***{shown[-4:]}" if len(shown) > 12 else "***"
    return Refusal(
        status=401,
        code="invalid_api_key",
        message=f"Incorrect API key provided: {masked}. You can find your API key in your account settings.",
    )


def wrong_token() -> Refusal:
    """Builds a 401 for a token: the one body without `error`. Source: github.com/microsoft/vscode/issues/283763."""
    return Refusal(
        status=401,
        message="",
        raw={
            "statusCode": 401,
            "message": "Unauthorized. Access token is missing, invalid, audience is incorrect "
            "(https://cognitiveservices.azure.com), or have expired.",
        },
    )


def no_role(principal: str) -> Refusal:
    """Builds a 401 for a token whose owner lacks the role: Azure does not use 403 here.

    Source: github.com/microsoft/semantic-kernel/issues/10020.
    """
    return Refusal(
        status=401,
        gateway=True,
        code="PermissionDenied",
        message=f"The principal `{principal}` lacks the required data action "
        "`Microsoft.CognitiveServices/accounts/OpenAI/deployments/chat/completions/action` to perform "
        "`POST /openai/deployments/{deployment-id}/chat/completions` operation.",
    )


def no_deployment(surface: Surface, name: str) -> Refusal:
    """Builds a 404 for a deployment (Azure) or model (OpenAI). Source: github.com/chatboxai/chatbox/issues/646."""
    if surface.is_azure:
        return Refusal(
            status=404,
            gateway=True,
            code="DeploymentNotFound",
            message="The API deployment for this resource does not exist. If you created the deployment within "
            "the last 5 minutes, please wait a moment and try again.",
        )
    return Refusal(
        status=404,
        code="model_not_found",
        message=f"The model `{name}` does not exist or you do not have access to it.",
    )


def no_such_path(surface: Surface, method: str, path: str) -> Refusal:
    """Builds a 404 for a path, or for an api-version that Azure does not know."""
    if surface.is_azure:
        return Refusal(status=404, gateway=True, code="404", message="Resource not found")
    return Refusal(status=404, message=f"Invalid URL ({method} {path})")


def wrong_operation(surface: Surface, model: str, operation: str = "chatCompletion") -> Refusal:
    """Builds the refusal of a model asked for what it does not do, such as a chat model to transcribe.

    OpenAI's words for the second were not found; they are made like those of the first.
    """
    if surface.is_azure:
        return Refusal(
            status=400,
            gateway=True,
            code="OperationNotSupported",
            message=f"The {operation} operation does not work with the specified model, {model}. Please "
            "choose different model and try again.",
        )
    if operation != "chatCompletion":
        return Refusal(
            status=400,
            param="model",
            code="invalid_value",
            message=f"invalid model: {model} is not supported in the v1/audio/transcriptions endpoint.",
        )
    return Refusal(
        status=404,
        param="model",
        message="This is not a chat model and thus not supported in the v1/chat/completions endpoint.",
    )


def too_many(
    surface: Surface, *, kind: str, operation: str, model: str, retry_after_s: float, rate: RateState
) -> Refusal:
    """Builds a 429 for rate; `kind` is `requests` or `tokens`.

    Source: github.com/microsoft/copilot-camp/issues/551, github.com/jasonacox/TinyLLM/issues/17 (Azure);
    developers.openai.com/api/docs/guides/rate-limits (OpenAI).
    """
    seconds = max(1, -(-round(retry_after_s * 1000) // 1000))
    headers = {"retry-after": str(seconds), "retry-after-ms": str(max(1, round(retry_after_s * 1000)))}
    if surface.is_azure:
        words = "token rate limit" if kind == "tokens" else "call rate limit"
        return Refusal(
            status=429,
            gateway=True,
            code="429",
            message=f"Requests to the {operation} Operation under Azure OpenAI API have exceeded {words} of your "
            f"current OpenAI S0 pricing tier. Please retry after {seconds} seconds. Please contact Azure support "
            "service if you would like to further increase the default rate limit.",
            headers=headers,
            rate=rate,
        )
    limit = rate.limit_tokens if kind == "tokens" else rate.limit_requests
    short = "TPM" if kind == "tokens" else "RPM"
    return Refusal(
        status=429,
        type=kind,
        code="rate_limit_exceeded",
        message=f"Rate limit reached for {model} in organization emulator on {kind} per min ({short}): Limit "
        f"{limit}. Please try again in {retry_after_s:.3f}s.",
        headers=headers,
        rate=rate,
    )


def engine_failed() -> Refusal:
    """Builds a 500: one request failed inside. Source: community.openai.com/t/997997."""
    return Refusal(
        status=500,
        type="server_error",
        message="The server had an error while processing your request. Sorry about that!",
    )


def by_status(surface: Surface, status: int) -> Refusal:
    """Returns the service's usual message for a status, without any header that says how long to wait.

    Azure's bodies for 408, 409, 413, 422 and 529 were not found in public: they are given its two fields.
    """
    match status:
        case 401:
            return wrong_key(surface, "")
        case 404:
            return no_deployment(surface, "this-model")
        case 500:
            return engine_failed()
        case _:
            type_, code, message = _BY_STATUS.get(
                status, ("api_error", None, f"The service answered {status}.")
            )
            gateway_code = str(status) if surface.is_azure else code
            return Refusal(status=status, gateway=True, type=type_, code=gateway_code, message=message)


_BY_STATUS: dict[int, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", None, "The request is not valid."),
    403: ("request_forbidden", None, "Access denied due to Virtual Network/Firewall rules."),
    408: ("timeout", None, "The operation was timed out."),
    409: ("conflict", None, "The request conflicts with another one."),
    413: ("invalid_request_error", None, "The request is too large."),
    422: ("invalid_request_error", None, "The request could not be processed."),
    429: ("requests", "rate_limit_exceeded", "Rate limit is exceeded. Try again later."),
    502: ("server_error", None, "Bad gateway."),
    503: (
        "service_unavailable_error",
        "server_is_overloaded",
        "The system is currently experiencing high demand.",
    ),
    504: ("server_error", None, "The gateway timed out."),
    529: ("overloaded_error", None, "The service is overloaded."),
}
