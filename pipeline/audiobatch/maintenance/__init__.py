"""Work on an existing output folder or its setup: verify, purge, doctor."""
