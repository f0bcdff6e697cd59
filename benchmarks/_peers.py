"""The pools of the peers behind one method, each used as its documentation says.

Libraries are imported by name: each is optional, and a side loads only its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

#: Maps a function over items with some library and returns the results in input order.
Mapper = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]


def library(name: str) -> Any:
    """Import a peer."""
    return importlib.import_module(name)


def even_chunk(count: int, workers: int) -> int:
    """Return the chunk size that `multiprocessing.Pool.map` takes by itself."""
    return max(1, -(-count // (workers * 4)))


@contextmanager
def joblib_mapper(workers: int, chunk: int | None) -> Iterator[Mapper]:
    """`joblib.Parallel` with loky; ``chunk`` None is its automatic batching."""
    joblib = library("joblib")
    with joblib.Parallel(n_jobs=workers, batch_size="auto" if chunk is None else chunk) as parallel:
        yield lambda fn, items: list(parallel(joblib.delayed(fn)(item) for item in items))
    library("joblib.externals.loky").get_reusable_executor().shutdown(kill_workers=True)


@contextmanager
def pool_mapper(workers: int, chunk: int | None) -> Iterator[Mapper]:
    """`multiprocessing.Pool.map`."""
    with library("multiprocessing").Pool(workers) as pool:
        yield lambda fn, items: list(pool.map(fn, items, chunksize=chunk))
        pool.close()
        pool.join()


@contextmanager
def pool_imap_mapper(workers: int, chunk: int | None) -> Iterator[Mapper]:
    """`multiprocessing.Pool.imap`; ``chunk`` None is the size that ``map`` would take."""
    with library("multiprocessing").Pool(workers) as pool:
        yield lambda fn, items: list(pool.imap(fn, items, chunk or even_chunk(len(items), workers)))
        pool.close()
        pool.join()


@contextmanager
def futures_mapper(workers: int, chunk: int | None) -> Iterator[Mapper]:
    """`concurrent.futures.ProcessPoolExecutor.map`; ``chunk`` None is the size that `Pool.map` would take."""
    with library("concurrent.futures").ProcessPoolExecutor(workers) as executor:
        yield lambda fn, items: list(
            executor.map(fn, items, chunksize=chunk or even_chunk(len(items), workers)),
        )


@contextmanager
def pebble_mapper(workers: int, chunk: int | None) -> Iterator[Mapper]:
    """`pebble.ProcessPool.map`; ``chunk`` None is the size that `Pool.map` would take."""
    with library("pebble").ProcessPool(max_workers=workers) as pool:
        yield lambda fn, items: list(
            pool.map(fn, items, chunksize=chunk or even_chunk(len(items), workers)).result(),
        )
        pool.close()
        pool.join()


@contextmanager
def mpire_mapper(workers: int, chunk: int | None) -> Iterator[Mapper]:
    """`mpire.WorkerPool.map`; ``chunk`` None is its own choice."""
    with library("mpire").WorkerPool(n_jobs=workers, keep_alive=True) as pool:
        yield lambda fn, items: list(pool.map(fn, items, chunk_size=chunk))
        pool.stop_and_join()
