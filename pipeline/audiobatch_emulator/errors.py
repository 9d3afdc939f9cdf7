"""What keeps the emulator from starting."""

from __future__ import annotations


class EmulatorError(Exception):
    """The emulator cannot work with these settings on this machine; the message says what to do."""
