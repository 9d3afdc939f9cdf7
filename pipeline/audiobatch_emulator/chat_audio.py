"""Reading what a request says of the spoken reply: modalities, voice, format.

Source: the Chat Completions reference; github.com/Agent-Field/agentfield/issues/584 (streaming takes pcm16
only). The words about an unsupported combination of modalities are the realtime API's.
"""

from audiobatch_emulator.checks import missing, wrong_type
from audiobatch_emulator.encode import FORMATS
from audiobatch_emulator.request_errors import invalid, invalid_value

#: What the reference lists for `audio.voice`, and three more that its prose names.
VOICES = (
    *("alloy", "ash", "ballad", "coral", "echo", "fable", "nova", "onyx"),
    *("sage", "shimmer", "verse", "marin", "cedar"),
)
PREVIEW_VOICES = ("alloy", "echo", "shimmer")


def read_modalities(value: object) -> bool:
    """Reads `modalities`: returns true where audio is asked for."""
    if value is None:
        return False
    if not isinstance(value, list):
        raise wrong_type("modalities", "an array of strings", value)
    for index, modality in enumerate(value):
        if modality not in ("text", "audio"):
            raise invalid_value(modality, ("text", "audio"), f"modalities[{index}]")
    if "text" not in value or len(set(value)) != len(value):
        raise invalid(
            f"Invalid modalities: {value}. Supported combinations are: ['text'] and ['text', 'audio'].",
            "modalities",
            "invalid_value",
        )
    return "audio" in value


def read_audio(value: object, *, spoken: bool, stream: bool, voices: tuple[str, ...]) -> tuple[str, str]:
    """Reads voice and format from the `audio` object."""
    if value is None:
        if spoken:
            raise missing("audio")
        return "alloy", "wav"
    if not isinstance(value, dict):
        raise wrong_type("audio", "an object", value)
    for name in ("voice", "format"):
        if value.get(name) is None:
            raise missing(f"audio.{name}")
    for name in value:
        if name not in ("voice", "format"):
            raise invalid(f"Unknown parameter: 'audio.{name}'.", f"audio.{name}", "unknown_parameter")
    audio_format = value["format"]
    if audio_format not in FORMATS:
        raise invalid_value(audio_format, FORMATS, "audio.format")
    if spoken and stream and audio_format != "pcm16":
        raise invalid(
            f"Unsupported value: 'audio.format' does not support '{audio_format}' when stream=true. Supported "
            "values are: 'pcm16'.",
            "audio.format",
            "unsupported_value",
        )
    return _voice(value["voice"], voices), audio_format


def _voice(value: object, voices: tuple[str, ...]) -> str:
    if isinstance(value, dict):
        name = value.get("id")
        if not isinstance(name, str) or not name.startswith("voice_"):
            raise invalid_value(name, voices, "audio.voice")
        return name
    if not isinstance(value, str):
        raise wrong_type("audio.voice", "a string or an object", value)
    if value.lower() not in voices:
        raise invalid_value(value, voices, "audio.voice")
    return value.lower()
