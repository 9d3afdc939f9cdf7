"""`--workers`: who is to send for a run, checked before anything is done, and started once there is a plan."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiobatch.address import is_database
from audiobatch.errors import ConfigError

if TYPE_CHECKING:
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.execution.coordinator import WorkerBackend
    from audiobatch.execution.job import Job
    from audiobatch.planning.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Who sends.

    Attributes:
        count: how many.
        pool: a Prefect work pool that starts them.
        dask: the address of a Dask scheduler that does; neither: this machine.
    """

    count: int
    pool: str | None = None
    dask: str | None = None

    async def send(self, job: Job, plan: Plan) -> None:
        """Have the workers send the plan's items; return when that has ended, however.

        Raises:
            ConfigError: no worker could begin.
        """
        if not plan.to_send or job.stop.asked:
            return
        from audiobatch.execution.coordinator import Coordinator

        await Coordinator(job, self._crew(), self.count).work()

    def _crew(self) -> WorkerBackend:
        if self.pool is not None:
            from audiobatch_flows.backends.work_pool import WorkPoolBackend

            return WorkPoolBackend(self.pool)
        if self.dask is not None:
            from audiobatch_flows.backends.dask import DaskBackend

            return DaskBackend(self.dask)
        from audiobatch_flows.backends.processes import ProcessBackend

        return ProcessBackend()


def workers_for(
    spec: JobSpec, count: int | None, *, pool: str | None, dask: str | None, prefect: bool, watch: bool
) -> Workers | None:
    """Return what a command line asks for; None: the run sends by itself.

    Raises:
        ConfigError: flags that do not go together, or a job that several processes cannot work on.
    """
    if count is None:
        if flag := "--work-pool" if pool else "--dask" if dask else "":
            raise ConfigError(f"{flag} says where workers run; say how many, too: --workers N")
        return None
    if pool and dask:
        raise ConfigError("workers run on a --work-pool or on a --dask cluster: leave one of them out")
    if pool and not prefect:
        raise ConfigError("a --work-pool is Prefect's: leave --no-prefect out, or --work-pool")
    if dask and importlib.util.find_spec("distributed") is None:
        raise ConfigError("--dask needs the extra `dask`: pip install 'audiobatch[dask]'")
    if watch:
        raise ConfigError("--watch and --workers do not go together: schedule the job, or start it again")
    if spec.ledger is None or not is_database(spec.ledger):
        raise ConfigError(
            "--workers needs books that several processes can share, and an SQLite file is one run's alone: name "
            "a PostgreSQL database with --ledger postgresql+psycopg://USER@HOST/DATABASE"
        )
    if spec.provider == "local":
        raise ConfigError(
            "--provider local starts an emulator of its own in each process; start one for all with `audiobatch "
            "emulator`, and give its address as --endpoint"
        )
    if spec.max_cost is not None:
        raise ConfigError(
            "--max-cost is counted by each process for itself; with --workers give --max-total-cost, which all "
            "runs on a ledger keep together"
        )
    return Workers(count=count, pool=pool, dask=dask)
