"""A session's settings: what they are at the start, and how `session.update` changes them.

An update is partial: what it does not name stays. `turn_detection` and `transcription` are turned off by
null. The voice is frozen after the first audio, and the model never changes. The beta's flat fields
(`voice`, `modalities`, `input_audio_format` …) are no fields any more.

Source: the Realtime reference (`session.update`, `RealtimeSession`); learn.microsoft.com, "Migrate to the GA
Realtime API". November 2026.
"""

import copy
import time
from collections.abc import Mapping
from typing import Any

from audiobatch_emulator.checks import boolean, integer, missing, number, object_, text
from audiobatch_emulator.realtime_audio import FORMATS, PCM, SocketFormat
from audiobatch_emulator.realtime_checks import (
    Check,
    anything,
    check_format,
    check_max_tokens,
    check_modalities,
    check_voice,
    no_tools,
    object_or_null,
    one_of,
)
from audiobatch_emulator.request_errors import invalid, invalid_value

INSTRUCTIONS = "You are a helpful and friendly assistant that speaks. Keep your answers short."
SERVER_VAD: dict[str, Any] = {
    "type": "server_vad",
    "threshold": 0.5,
    "prefix_padding_ms": 300,
    "silence_duration_ms": 200,
    "idle_timeout_ms": None,
    "create_response": True,
    "interrupt_response": True,
}
SEMANTIC_VAD: dict[str, Any] = {
    "type": "semantic_vad",
    "eagerness": "auto",
    "create_response": True,
    "interrupt_response": True,
}

_VAD_CHECKS: dict[str, dict[str, Check]] = {
    "server_vad": {
        "threshold": number(0, 1),
        "prefix_padding_ms": integer(0, 10_000),
        "silence_duration_ms": integer(0, 10_000),
        "idle_timeout_ms": anything,
        "create_response": boolean,
        "interrupt_response": boolean,
    },
    "semantic_vad": {
        "eagerness": one_of("low", "medium", "high", "auto"),
        "create_response": boolean,
        "interrupt_response": boolean,
    },
}
_TRANSCRIPTION: dict[str, Any] = {
    "model": text,
    "language": text,
    "prompt": text,
    "delay": anything,
    "keywords": anything,
}
_INPUT: dict[str, Any] = {
    "format": check_format,
    "noise_reduction": object_or_null,
    "transcription": object_or_null,
    "turn_detection": object_or_null,
}
_OUTPUT: dict[str, Any] = {
    "format": check_format,
    "voice": check_voice,
    "speed": number(0.25, 1.5),
}
_SESSION: dict[str, Any] = {
    "instructions": text,
    "output_modalities": check_modalities,
    "max_output_tokens": check_max_tokens,
    "tools": no_tools,
    **dict.fromkeys(
        ("tool_choice", "tracing", "include", "prompt", "truncation", "reasoning"),
        anything,
    ),
    "parallel_tool_calls": anything,
}


class Session:
    """One session's settings, always whole and valid."""

    def __init__(self, *, identity: str, model: str, life_s: float) -> None:
        self.id = identity
        self.model = model
        self.expires_at = int(time.time() + life_s)
        self.has_spoken = False
        self.settings: dict[str, Any] = {
            "output_modalities": ["audio"],
            "instructions": INSTRUCTIONS,
            "tools": [],
            "tool_choice": "auto",
            "max_output_tokens": "inf",
            "tracing": None,
            "truncation": "auto",
            "prompt": None,
            "include": None,
            "audio": {
                "input": {
                    "format": PCM.described(),
                    "transcription": None,
                    "noise_reduction": None,
                    "turn_detection": dict(SERVER_VAD),
                },
                "output": {"format": PCM.described(), "voice": "marin", "speed": 1.0},
            },
        }

    @property
    def input(self) -> Mapping[str, Any]:
        """`audio.input`."""
        found: Mapping[str, Any] = self.settings["audio"]["input"]
        return found

    @property
    def input_format(self) -> SocketFormat:
        """The format of appended audio."""
        return FORMATS[self.input["format"]["type"]]

    @property
    def turn_detection(self) -> Mapping[str, Any] | None:
        """How turns are told; None: by the client's commits."""
        found: Mapping[str, Any] | None = self.input["turn_detection"]
        return found

    def described(self) -> dict[str, Any]:
        """Returns the session as events show it."""
        head = {
            "type": "realtime",
            "object": "realtime.session",
            "id": self.id,
            "model": self.model,
        }
        return head | self.settings | {"expires_at": self.expires_at}

    def update(self, patch: object) -> None:
        """Takes what a client wants changed: all of it, or nothing.

        Raises:
            Refusal: something in it is wrong; the session is as it was.
        """
        object_(patch, "session")
        assert isinstance(patch, dict)
        if "type" not in patch:
            raise missing("session.type")
        if patch["type"] != "realtime":
            raise invalid_value(patch["type"], ("realtime",), "session.type")
        fresh = copy.deepcopy(self.settings)
        for name, value in patch.items():
            param = f"session.{name}"
            match name:
                case "type":
                    pass
                case "model" if value in (self.model, None):
                    pass
                case "model":
                    raise invalid(
                        "The model of a session cannot be changed.",
                        param,
                        "invalid_value",
                    )
                case "audio":
                    self._update_audio(fresh["audio"], value)
                case _:
                    _set(fresh, {name: value}, _SESSION, "session")
        self.settings = fresh

    def _update_audio(self, audio: dict[str, Any], patch: object) -> None:
        object_(patch, "session.audio")
        assert isinstance(patch, dict)
        for side, value in patch.items():
            param = f"session.audio.{side}"
            if side not in ("input", "output"):
                raise _unknown(param)
            object_(value, param)
            _set(audio[side], value, _INPUT if side == "input" else _OUTPUT, param)
            if side == "input" and value.get("turn_detection") is not None:
                audio[side]["turn_detection"] = _detection(value["turn_detection"])
            if side == "input" and value.get("transcription") is not None:
                known = {"model": None, "language": None, "prompt": None}
                _set(
                    known,
                    value["transcription"],
                    _TRANSCRIPTION,
                    f"{param}.transcription",
                )
                audio[side]["transcription"] = known
            voice = value.get("voice")
            if side == "output" and voice is not None and self.has_spoken:
                before = self.settings["audio"]["output"]["voice"]
                if voice != before:
                    raise invalid(
                        "Cannot update a conversation's voice if assistant audio is present.",
                        "session.audio.output.voice",
                        "cannot_update_voice",
                    )


def _detection(value: dict[str, Any]) -> dict[str, Any]:
    param = "session.audio.input.turn_detection"
    kind = value.get("type")
    one_of(*_VAD_CHECKS)(kind, f"{param}.type")
    whole = dict(SERVER_VAD if kind == "server_vad" else SEMANTIC_VAD)
    _set(
        whole,
        {k: v for k, v in value.items() if k != "type"},
        _VAD_CHECKS[str(kind)],
        param,
    )
    return whole


def _set(
    into: dict[str, Any],
    patch: Mapping[str, Any],
    checks: Mapping[str, Check],
    param: str,
) -> None:
    for name, value in patch.items():
        if name not in checks:
            raise _unknown(f"{param}.{name}")
        checks[name](value, f"{param}.{name}")
        into[name] = FORMATS[value["type"]].described() if name == "format" else value


def _unknown(param: str) -> Exception:
    return invalid(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
