"""Scenes predicted by the workers of a Dask cluster, band by band, with the same bytes as one process."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from cryosentinel.dask_client import connected
from cryosentinel.mapping.scene import Band, Maker, Options, Scene, open_scene, predict_bands

if TYPE_CHECKING:
    from distributed import Client

    from cryosentinel.models.segmenter import Segmenter

BANDS_A_TASK = 4  # a task repeats the row of windows above its first band: a fifth more work at half overlap
RETRIES = 5  # of a task whose worker died


@functools.lru_cache(maxsize=1)
def _opened(load: Callable[[], Segmenter]) -> Segmenter:
    return load()


def make_bands(
    load: Callable[[], Segmenter], scene: Scene, options: Options, first: int, last: int, threads: int | None = None
) -> list[Band]:
    """Bands ``first`` to ``last`` (not included) of a scene; the model is opened once a process.

    Args:
        load: opens the model; equal values open the same one.
        scene, options: see :func:`cryosentinel.mapping.scene.predict_bands`.
        first, last: bands.
        threads: of torch: sums over other numbers of threads differ in their last bit.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    with open_scene(scene) as opened:
        return list(predict_bands(_opened(load), opened, options, first, last))


def local_maker(load: Callable[[], Segmenter]) -> Maker:
    """Bands made in this process, one after the other; the model is opened when the first is asked for."""

    def make(scene: Scene, options: Options, runs: Sequence[tuple[int, int]]) -> Iterable[Band]:
        for first, last in runs:
            with open_scene(scene) as opened:
                yield from predict_bands(_opened(load), opened, options, first, last)

    return make


def cluster(scheduler: str) -> AbstractContextManager[Client]:
    """A client of a Dask cluster, see :func:`cryosentinel.dask_client.connected`.

    Args:
        scheduler: address of a scheduler (``tcp://host:8786``), or "local" for worker processes that share the cores,
            each with as many threads as torch has here: OMP_NUM_THREADS=1 makes it a worker a core.
    """
    import torch

    return connected(scheduler, max(1, (os.cpu_count() or 1) // torch.get_num_threads()))


def cluster_maker(load: Callable[[], Segmenter], client: Client) -> Maker:
    """Bands made by the workers of a cluster, which must see the scene's files and the checkpoint under their paths.

    A task whose worker dies is given to another one; a band is the same wherever it is made: workers take as many
    threads of torch as this process, because sums over other numbers of threads differ in their last bit.

    Args:
        load: opens the model on a worker; must be pickled.
        client: of the cluster.
    """
    import torch
    from distributed import as_completed

    threads = torch.get_num_threads()

    def make(scene: Scene, options: Options, runs: Sequence[tuple[int, int]]) -> Iterable[Band]:
        pieces = [(at, min(at + BANDS_A_TASK, last)) for first, last in runs for at in range(first, last, BANDS_A_TASK)]
        tasks = [
            client.submit(make_bands, load, scene, options, first, last, threads, pure=False, retries=RETRIES)
            for first, last in pieces
        ]
        try:
            # A finished task's bands leave the cluster as soon as they are written here.
            for done in as_completed(tasks):
                yield from done.result()
                done.release()
        finally:
            client.cancel(tasks)

    return make
