"""Inputs: what is found, read and made ready to be sent."""
