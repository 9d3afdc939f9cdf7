"""What a job's settings mean for one input's sound: which side of it, how prepared, and how replies are finished.

A fingerprint holds what is asked for here, and only that: settings left at their default are left out, so that a
later option changes no old fingerprint.
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

#: How the ids of a recording's two sides end, when each is an item of its own.
SIDE_MARKS: dict[str, Channels] = {"#left": "left", "#right": "right"}
_PREPARATION = ("channels", "trim_silence", "max_part")
_FINISH = ("normalize", "trim_reply_silence", "fade_s")


def side_of(source: Source, spec: JobSpec) -> Channels:
    """Which side of a recording is sent. Under a split, a recording without two sides is sent as it is."""
    if spec.channels != "split":
        return spec.channels
    return next((side for mark, side in SIDE_MARKS.items() if source.item_id.endswith(mark)), "mix")


def preparation_of(source: Source, spec: JobSpec) -> dict[str, Any]:
    """The preparation that is asked for, as a fingerprint holds it."""
    if source.kind is not SourceKind.RECORDING:
        return {}
    return _asked(spec, _PREPARATION) | (
        {"channels": side} if (side := side_of(source, spec)) != "mix" else {}
    )


def trimmed_s(source: Source, spec: JobSpec) -> float:
    """Seconds of silence that will be left out of a recording; of one side alone it may be more."""
    media = source.media
    return (media.trimmable_s or 0.0) if spec.trim_silence and media is not None else 0.0


def sent_s(source: Source, spec: JobSpec) -> float:
    """Seconds of a recording that will be sent, once; 0 for what is none."""
    return source.media.duration_s - trimmed_s(source, spec) if source.media is not None else 0.0


def parts_of(source: Source, spec: JobSpec) -> PartCount:
    """How many requests a recording will take."""
    media = source.media
    if media is None:
        return PartCount()
    length_s = sent_s(source, spec)
    shortened_s = length_s if trimmed_s(source, spec) else None
    if spec.max_part is None and fits_one_request(media, source.size_bytes, shortened_s):
        return PartCount()
    return count_parts(length_s, longest_s=spec.max_part * 60 if spec.max_part else PART_S)


def finish_of(spec: JobSpec) -> Finish:
    """How every spoken reply of a job is finished."""
    return Finish(
        loudness_lufs=spec.normalize,
        trim_silence=spec.trim_reply_silence,
        fade_in_s=spec.fade_s,
        fade_out_s=spec.fade_s,
    )


def finish_settings(spec: JobSpec) -> dict[str, Any]:
    """The finishing that is asked for, as a fingerprint holds it; empty when none is."""
    return _asked(spec, _FINISH)


def sound_settings(spec: JobSpec) -> dict[str, Any]:
    """All of them that are not at their default, to say what changed between two runs."""
    return _asked(spec, (*_PREPARATION, *_FINISH))


def unfit(source: Source, spec: JobSpec) -> str:
    """Why a recording that can be read is not to be sent in this job; empty when it is.

    Not part of `Source.refusal`, which is what was found out of the file and is kept from run to run.
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
        _asks_parts_for_fields(spec)
        and parts_of(source, spec).expected > 1
        and parts_are_certain(source, spec)
    ):
        return fields_of_parts(spec)
    return ""


def _asks_parts_for_fields(spec: JobSpec) -> bool:
    """Whether the turn that hears the recording is the one that asks for fields: the last, so the only one."""
    return bool(spec.fields) and len(spec.turn_specs()) == 1


def fields_of_parts(spec: JobSpec) -> str:
    """Why a recording in parts is not asked for fields, and what to do: each part would answer for itself."""
    return (
        "it goes out in parts, and fields asked of each would not be one answer: ask for the fields in a "
        "follow-up turn (a second --prompt), which builds on the joined words"
        f"{', or raise --max-part' if spec.max_part else ''}"
    )


def parts_are_certain(source: Source, spec: JobSpec) -> bool:
    """Not where silence is left out of one side alone: what is known of it is the silence of all sides."""
    return not spec.trim_silence or side_of(source, spec) == "mix"


def _asked(spec: JobSpec, names: tuple[str, ...]) -> dict[str, Any]:
    defaults = _defaults(type(spec), names)
    return {name: value for name in names if (value := getattr(spec, name)) != defaults[name]}


@lru_cache(maxsize=16)
def _defaults(kind: type[JobSpec], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: kind.model_fields[name].default for name in names}
