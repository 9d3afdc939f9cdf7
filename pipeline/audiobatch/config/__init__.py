"""Settings of a job: where they come from, and what they name."""
