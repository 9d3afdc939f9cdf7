"""A job's settings: their schema, where they come from, the deployments that they name, and prices."""
