"""Pick one channel of a recording, and tell whether its channels can be mixed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: `mix`: the mean of all channels. `left`, `right`: one side of a two-channel recording, such as a call's.
Channels = Literal["mix", "left", "right"]
_SIDES = {"left": 0, "right": 1}

#: How far the mean of all channels may lie below their level. Where one of n speaks alone, it lies 10 log10(n) dB
#: below, 12 dB of sixteen; where a microphone's two wires are taken for left and right, nothing is left of it.
_CANCELLED_DB = 20.0


def pick_channel(block: NDArray[np.float32], channels: Channels | int) -> NDArray[np.float32]:
    """Pick one channel of a block: frames x channels in, frames x 1 out.

    Args:
        channels: which side, or the number of a channel, 0 for the first.
    """
    if block.shape[1] == 1:
        return block
    if channels == "mix":
        return _mean(block)
    index = _SIDES[channels] if isinstance(channels, str) else channels
    return np.ascontiguousarray(block[:, index : index + 1])


class MixMeter:
    """Tell from a recording's blocks whether its channels cancel each other when they are mixed.

    Where some of its floats are no sound (infinite, not a number), they do not.
    """

    __slots__ = ("_products",)

    def __init__(self, channels: int) -> None:
        self._products = np.zeros((channels, channels))

    @np.errstate(over="ignore", invalid="ignore")
    def add(self, block: NDArray[np.float32]) -> None:
        """Measure a block, frames x channels."""
        if block.shape[1] > 1:
            self._products += block.T @ block

    @np.errstate(over="ignore", invalid="ignore")
    def replacement_channel(self) -> int | None:
        """Return the loudest channel, 0 for the first, where the mean cancels out; else None."""
        count = len(self._products)
        mean_power = self._products.trace() / count
        mix_power = self._products.sum() / count**2
        if mix_power < mean_power * 10 ** (-_CANCELLED_DB / 10):
            return int(self._products.diagonal().argmax())
        return None


def _mean(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of the channels, by adding columns: numpy's mean over a short axis is five times slower."""
    total = block[:, 0] + block[:, 1]
    for index in range(2, block.shape[1]):
        total += block[:, index]
    total *= np.float32(1 / block.shape[1])
    return total[:, None]
