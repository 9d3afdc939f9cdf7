"""Where workers run: processes, a work pool, a Dask cluster."""
