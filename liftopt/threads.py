"""How many threads the numerical libraries may use: one mechanism for estimators, comparisons, command line.

Training here is a sequence of many products and factorisations of small and medium matrices, which gain
little from threads and lose much where cores are shared: threads that wait for each other spin. An estimator
therefore fits with one thread unless a number was chosen,

    with limit_threads(8):            here, for the fits inside
        ...
    OMP_NUM_THREADS=8 python ...      or by the variables that BLAS libraries read (see ``VARIABLES``).

Limits hold for the libraries that are loaded; those loaded inside join by :func:`limit_new_libraries`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from threadpoolctl import threadpool_limits

from liftopt.solvers.validation import as_count

VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class _Limit(NamedTuple):
    threads: int
    stack: ExitStack


_current: ContextVar[_Limit | None] = ContextVar("liftopt_threads", default=None)


@contextmanager
def limit_threads(threads: int) -> Iterator[None]:
    """Let the numerical libraries use at most so many threads, for the fits inside too.

    Parameters
    ----------
    threads : int
        Threads of BLAS and OpenMP, process-wide while the context lasts.

    Yields
    ------
    None
        The former limits return at the end.

    Raises
    ------
    ValueError
        If ``threads`` is not a positive integer.

    Examples
    --------
    >>> from liftopt import limit_threads
    >>> with limit_threads(2):
    ...     pass
    """
    threads = as_count("threads", threads)
    with ExitStack() as stack:
        stack.enter_context(threadpool_limits(threads))
        token = _current.set(_Limit(threads, stack))
        stack.callback(_current.reset, token)
        yield


@contextmanager
def threads_of_a_fit() -> Iterator[None]:
    """The chosen number of threads, or one."""
    if (limit := _current.get()) is not None:
        with limit_threads(limit.threads):
            yield
    elif any(os.environ.get(name) for name in VARIABLES):
        yield
    else:
        with limit_threads(1):
            yield


def limit_new_libraries() -> None:
    """Apply the limit in force, if any, to libraries that were loaded after it was set."""
    if (limit := _current.get()) is not None:
        limit.stack.enter_context(threadpool_limits(limit.threads))
