"""Now, by the database's clock: machines that share a ledger need not agree on the time."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Float
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class moment(FunctionElement[float]):  # noqa: N801 - used like SQL's own functions
    """Seconds since 1970. Not the transaction's beginning: a claim may have waited for its connection."""

    type = Float()
    inherit_cache = True


@compiles(moment, "sqlite")
def _sqlite(_element: moment, _compiler: Any, **_options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(moment, "postgresql")
def _postgresql(_element: moment, _compiler: Any, **_options: Any) -> str:
    return "(extract(epoch FROM clock_timestamp())::float8)"
