"""`python -m audiobatch_emulator`."""

from audiobatch_emulator.command import emulator

emulator(prog_name="python -m audiobatch_emulator")
