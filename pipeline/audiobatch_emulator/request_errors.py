"""Refusals of the request itself: 400, in the service's words.

The sources stand at each; where none does, the text is one that the API is widely seen to give.
"""

from typing import Any

from audiobatch_emulator.service_errors import Refusal
from audiobatch_emulator.surface import Surface


def invalid(message: str, param: str | None, code: str | None) -> Refusal:
    """Builds a 400: the request is wrong in itself."""
    return Refusal(status=400, message=message, param=param, code=code)


def _listed(allowed: tuple[str, ...]) -> str:
    quoted = [f"'{value}'" for value in allowed]
    if len(quoted) == 1:
        return quoted[0]
    comma = "," if len(quoted) > 2 else ""
    return f"{', '.join(quoted[:-1])}{comma} and {quoted[-1]}"


def invalid_value(value: object, allowed: tuple[str, ...], param: str) -> Refusal:
    """Builds a 400: a word that is not in the list.

    Source: github.com/Azure-Samples/aoai-realtime-audio-sdk/issues/94.
    """
    said = f"Invalid value: '{value}'. Supported values are: {_listed(allowed)}."
    return invalid(said, param, "invalid_value")


def bad_json() -> Refusal:
    """Builds a 400: the body is not JSON."""
    return invalid(
        "We could not parse the JSON body of your request. The API expects a JSON payload, but what was sent "
        "was not valid JSON.",
        None,
        None,
    )


def audio_not_found(audio_id: str, message_index: int) -> Refusal:
    """400, not 404. Source: community.openai.com/t/1046769."""
    return invalid(
        f"Assistant audio {audio_id} not found.",
        f"content.messages[{message_index}].audio.id",
        "audio_not_found",
    )


def wrong_audio_format() -> Refusal:
    """Builds a 400: these bytes are audio of another kind. Source: community.openai.com/t/1145719."""
    return invalid("This model does not support the format you provided.", "messages", "unsupported_format")


def undecodable_audio() -> Refusal:
    """Builds a 400: these bytes are no audio. Source: github.com/TutoriaLLM/TutoriaLLM/issues/370."""
    return invalid(
        "The audio file could not be decoded or its format is not supported.",
        "messages",
        "unsupported_format",
    )


_CATEGORIES = ("hate", "self_harm", "sexual", "violence")


def filter_categories(blocked: str | None = None) -> dict[str, dict[str, Any]]:
    """Returns Azure's verdict by category; `blocked` is the one that was found."""
    return {
        name: {"filtered": name == blocked, "severity": "high" if name == blocked else "safe"}
        for name in _CATEGORIES
    }


def prompt_blocked(surface: Surface) -> Refusal:
    """Builds a 400: the prompt met the content filter. The prompt was read, so it is charged.

    Source: github.com/openai/openai-agents-python/issues/806; "there will be a charge for this request":
    MicrosoftDocs, articles/ai-services/openai/concepts/content-filter.md.
    """
    if not surface.is_azure:
        return Refusal(
            status=400,
            code="content_policy_violation",
            message="Invalid prompt: your prompt was flagged as potentially violating our usage policy. Please "
            "try again with a different prompt.",
            billed=True,
        )
    verdict: dict[str, Any] = dict(filter_categories("violence"))
    verdict["jailbreak"] = {"detected": False, "filtered": False}
    return Refusal(
        status=400,
        type=None,
        param="prompt",
        code="content_filter",
        message="The response was filtered due to the prompt triggering Azure OpenAI's content management "
        "policy. Please modify your prompt and retry. To learn more about our content filtering policies please "
        "read our documentation: https://go.microsoft.com/fwlink/?linkid=2198766",
        extra={
            "status": 400,
            "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": verdict},
        },
        billed=True,
    )
