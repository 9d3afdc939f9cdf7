"""Replies that are wrong although their status is 200."""

import base64

from audiobatch_emulator.encode import wav_header
from audiobatch_emulator.faults import Fault
from audiobatch_emulator.streaming import DONE
from audiobatch_emulator.voicing import Voiced, pack

#: What is done to the audio, before the reply has a shape.
AUDIO_CORRUPTIONS = frozenset({"base64", "silent", "wav_header"})
HTML = b"""<!DOCTYPE html>
<html><head><title>502 Bad Gateway</title></head>
<body><center><h1>502 Bad Gateway</h1></center><hr><center>nginx</center></body></html>
"""


async def corrupted(pcm: bytes, audio_format: str, fault: Fault) -> Voiced:
    """Returns the audio of a reply, with what the fault does to it."""
    if fault.do.corrupt == "silent":
        pcm = bytes(len(pcm))
    voiced = await pack(pcm, audio_format)
    data = voiced.data
    if fault.do.corrupt == "base64":
        data = data[: len(data) // 8 * 4 + 1]  # one character over: no decoder can make sense of it
    if fault.do.corrupt == "wav_header" and audio_format == "wav":
        data = base64.b64encode(_other_header(len(pcm), fault.draw) + pcm)
    return Voiced(data=data, duration_s=voiced.duration_s)


def _other_header(size_bytes: int, draw: float) -> bytes:
    """Returns one of four wrong headers: sizes of nothing, of twice and of half the samples, and none at all."""
    headers = (
        wav_header(riff_size=0, data_size=0),
        wav_header(riff_size=36 + 2 * size_bytes, data_size=2 * size_bytes),
        wav_header(riff_size=36 + size_bytes // 2, data_size=size_bytes // 4 * 2),
        b"",
    )
    return headers[int(draw * len(headers)) % len(headers)]


def corrupted_body(pieces: list[bytes], content_type: str, fault: Fault) -> tuple[list[bytes], str]:
    """Returns the body of a reply and its type, with what the fault does to them."""
    match fault.do.corrupt:
        case "html":
            return [HTML], "text/html"
        case "json" if len(pieces) > 3 and pieces[-1] == DONE:
            # In a stream one event in the middle is cut short.
            middle = len(pieces) // 2
            cut = pieces[middle][: len(pieces[middle]) // 2] + b"\n\n"
            return [*pieces[:middle], cut, *pieces[middle + 1 :]], content_type
        case "json":
            body = b"".join(pieces)
            return [body[: len(body) // 2]], content_type
        case "no_done" if pieces[-1] == DONE:
            return pieces[:-1], content_type
        case _:
            return pieces, content_type
