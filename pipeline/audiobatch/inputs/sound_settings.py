"""Apply a job's audio settings to an input: its channels, its preparation, and how replies are finished.

A fingerprint contains these settings only where they differ from their defaults, so that an option that is added
later changes no old fingerprint.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from audiobatch.audio.convert import fits_one_request
from audiobatch.audio.finish import Finish
from audiobatch.audio.probe import SILENT_DBFS, is_silent
from audiobatch.audio.split import PART_S, PartCount, count_parts
from audiobatch.model import SourceKind

if TYPE_CHECKING:
    from audiobatch.audio.channels import Channels
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.model import Source

#: Suffixes of the ids of a recording's two sides, where each is an item.
SIDE_SUFFIXES: dict[str, Channels] = {"#left": "left", "#right": "right"}
_PREPARATION = ("channels", "trim_silence", "max_part")
_FINISH = ("normalize", "trim_reply_silence", "fade_s")


def channels_of(source: Source, spec: JobSpec) -> Channels:
    """Return which channels are sent; of a recording that is not stereo, all, also with `--channels split`."""
    if spec.channels != "split":
        return spec.channels
    return next((side for suffix, side in SIDE_SUFFIXES.items() if source.item_id.endswith(suffix)), "mix")


def preparation_of(source: Source, spec: JobSpec) -> dict[str, Any]:
    """Return the preparation settings as a fingerprint contains them."""
    if source.kind is not SourceKind.RECORDING:
        return {}
    channels = channels_of(source, spec)
    return _non_defaults(spec, _PREPARATION) | ({"channels": channels} if channels != "mix" else {})


def trimmed_s(source: Source, spec: JobSpec) -> float:
    """Return how many seconds of silence will be left out of a recording; of one side alone it may be more."""
    media = source.media
    return (media.trimmable_s or 0.0) if spec.trim_silence and media is not None else 0.0


def sent_s(source: Source, spec: JobSpec) -> float:
    """Return how many seconds of a recording will be sent; 0 for a prompt."""
    return source.media.duration_s - trimmed_s(source, spec) if source.media is not None else 0.0


def part_count(source: Source, spec: JobSpec) -> PartCount:
    """Estimate how many requests a recording takes."""
    media = source.media
    if media is None:
        return PartCount()
    length_s = sent_s(source, spec)
    shortened_s = length_s if trimmed_s(source, spec) else None
    if spec.max_part is None and fits_one_request(media, source.size_bytes, shortened_s):
        return PartCount()
    return count_parts(length_s, longest_s=spec.max_part * 60 if spec.max_part else PART_S)


def finish_of(spec: JobSpec) -> Finish:
    """Return how the job's spoken replies are finished."""
    return Finish(
        loudness_lufs=spec.normalize,
        trim_silence=spec.trim_reply_silence,
        fade_in_s=spec.fade_s,
        fade_out_s=spec.fade_s,
    )


def finish_settings(spec: JobSpec) -> dict[str, Any]:
    """Return the finishing settings as a fingerprint contains them; empty where there are none."""
    return _non_defaults(spec, _FINISH)


def sound_settings(spec: JobSpec) -> dict[str, Any]:
    """Return all audio settings that differ from their defaults, to say what changed between two runs."""
    return _non_defaults(spec, (*_PREPARATION, *_FINISH))


def why_unsuitable(source: Source, spec: JobSpec) -> str:
    """Say why this job refuses a recording that can be read; empty when it does not.

    This is not part of `Source.refusal`, which depends on the file alone and is stored in the ledger. Manifests of
    earlier versions contain these texts, and `verify` compares them: a new wording would make it report a
    difference.
    """
    media = source.media
    if media is None:
        return ""
    if not spec.send_silent and is_silent(media):
        return (
            f"nobody speaks in it: {media.level_dbfs:.0f} dBFS, below {SILENT_DBFS:.0f} throughout; "
            "--send-silent sends it all the same"
        )
    if spec.channels in {"left", "right"} and media.channels > 2:
        return f"it has {media.channels} channels: --channels {spec.channels} means nothing for it, mix does"
    if (
        _asks_fields_with_recording(spec)
        and part_count(source, spec).expected > 1
        and part_count_is_exact(source, spec)
    ):
        return why_no_fields_in_parts(spec)
    return ""


def _asks_fields_with_recording(spec: JobSpec) -> bool:
    """Whether the turn that sends the recording also asks for the fields: the job has only one turn."""
    return bool(spec.fields) and len(spec.turn_specs()) == 1


def why_no_fields_in_parts(spec: JobSpec) -> str:
    """Say why a recording in parts is not asked for fields, and what to do instead."""
    return (
        "it goes out in parts, and fields asked of each would not be one answer: ask for the fields in a "
        "follow-up turn (a second --prompt), which builds on the joined words"
        f"{', or raise --max-part' if spec.max_part else ''}"
    )


def part_count_is_exact(source: Source, spec: JobSpec) -> bool:
    """Whether the number of parts is exact: probing measures the silence of all sides, not of one."""
    return not spec.trim_silence or channels_of(source, spec) == "mix"


def _non_defaults(spec: JobSpec, names: tuple[str, ...]) -> dict[str, Any]:
    defaults = _defaults(type(spec), names)
    return {name: value for name in names if (value := getattr(spec, name)) != defaults[name]}


@lru_cache(maxsize=16)
def _defaults(kind: type[JobSpec], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: kind.model_fields[name].default for name in names}
