"""Commands for an output folder that exists: verify, purge, doctor."""
