class EngineCrashed(Exception):
    """The engine's process died or hung."""
