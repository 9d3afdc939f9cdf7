"""Which side of a recording is meant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.model import Media

#: `mix`: the mean of all channels. `left`, `right`: one side of a two-channel recording, such as a call's.
Channels = Literal["mix", "left", "right"]


def sides(media: Media) -> tuple[Channels, ...]:
    """The items that a channel split makes of a recording: its two sides, or itself where it has not two."""
    return ("left", "right") if media.channels == 2 else ("mix",)


def pick_channel(block: NDArray[np.float32], channels: Channels) -> NDArray[np.float32]:
    """One channel of a block: frames x channels in, frames x 1 out."""
    if block.shape[1] == 1:
        return block
    if channels == "mix":
        return _mean(block)
    index = 0 if channels == "left" else 1
    return np.ascontiguousarray(block[:, index : index + 1])


def _mean(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of the channels; adding columns is five times as fast as numpy's mean over a short axis."""
    total = block[:, 0] + block[:, 1]
    for index in range(2, block.shape[1]):
        total += block[:, index]
    total *= np.float32(1 / block.shape[1])
    return total[:, None]
