"""`python -m pipeline.emulator`."""

from pipeline.emulator.command import emulator

emulator(prog_name="python -m pipeline.emulator")
