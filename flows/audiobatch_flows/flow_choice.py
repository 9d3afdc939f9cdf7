"""Which of the two flows a job is for. They do the same; the name tells people what goes in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audiobatch.config.jobspec import JobSpec


def flow_for(spec: JobSpec) -> Any:
    """The flow that a job's inputs call for: recordings in a folder, or prompts."""
    from audiobatch.address import Address, place_of
    from audiobatch.audio.probe import looks_like_audio

    def has_sound(given: str) -> bool:
        path = place_of(given)
        if isinstance(path, Address):
            return not path.suffix or looks_like_audio(given)  # a name is not worth a listing
        return looks_like_audio(given) or (
            path.is_dir() and any(looks_like_audio(name) for _, _, names in os.walk(path) for name in names)
        )

    return flow_named("process-folder" if any(has_sound(one) for one in spec.inputs) else "speak-prompts")


def flow_named(name: str) -> Any:
    """`process-folder` or `speak-prompts`, as Prefect knows them."""
    from audiobatch_flows.flow import process_folder, speak_prompts

    return process_folder if name == "process-folder" else speak_prompts
