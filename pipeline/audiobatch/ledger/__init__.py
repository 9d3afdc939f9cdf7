"""The ledger: what was sent, what came of it, and what is left to do."""
