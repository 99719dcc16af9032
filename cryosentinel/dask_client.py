"""A client of a Dask cluster, for whatever room hands work to one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cryosentinel.errors import ConfigError, HubError

if TYPE_CHECKING:
    from distributed import Client

CONNECT_S = 20


@contextlib.contextmanager
def connected(scheduler: str, workers: int) -> Iterator[Client]:
    """A client of a cluster; it is the current one of this thread alone.

    Args:
        scheduler: address of a scheduler (``tcp://host:8786``), or "local" for processes of this machine.
        workers: how many of those, of one Dask thread each.

    Raises:
        ConfigError: Dask is not installed.
        HubError: no scheduler answers.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise ConfigError("A cluster needs Dask; install it with: pip install 'cryosentinel[ingest]'.") from None

    with contextlib.ExitStack() as opened:
        where: Any = scheduler
        if scheduler == "local":
            where = opened.enter_context(LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None))
        try:
            client = opened.enter_context(Client(where, timeout=CONNECT_S, set_as_default=False))
        except (OSError, TimeoutError, ValueError) as error:
            raise HubError(
                f"The Dask scheduler {scheduler} cannot be reached ({error}); start one or check its address."
            ) from None
        with client.as_current():
            yield client
