"""Decide what a run sends, and forecast its tokens, cost, time and disk space, before anything is sent."""
