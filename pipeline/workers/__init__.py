"""Workers: a run that has others send for it, and what they are told."""
