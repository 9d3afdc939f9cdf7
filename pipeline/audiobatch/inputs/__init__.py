"""Find a job's inputs in folders, tables and stores, and prepare recordings for sending."""
