"""One module a command of `audiobatch`; each parses, calls the library, prints, and gives an exit code."""
