import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from liftopt import limit_threads
from liftopt.threads import VARIABLES, limit_new_libraries, threads_of_a_fit

ROOT = Path(__file__).parent.parent


class Library:
    """A library with a number of threads, and what threadpoolctl does to it."""

    def __init__(self):
        self.threads = 2

    def limit(self, count):
        before, self.threads = self.threads, count
        return self._restored(before)

    @contextmanager
    def _restored(self, before):
        try:
            yield
        finally:
            self.threads = before


@pytest.fixture
def library(monkeypatch):
    """Nothing chosen, and a library of two threads."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    library = Library()
    monkeypatch.setattr("liftopt.threads.threadpool_limits", library.limit)
    return library


def test_a_fit_takes_one_thread_and_gives_the_others_back(library):
    with threads_of_a_fit():
        assert library.threads == 1
        with threads_of_a_fit():
            assert library.threads == 1
        assert library.threads == 1
    assert library.threads == 2


def test_a_chosen_number_holds_inside_of_fits(library, monkeypatch):
    with limit_threads(2), threads_of_a_fit():
        assert library.threads == 2
    with limit_threads(2), limit_threads(1), threads_of_a_fit():
        assert library.threads == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with threads_of_a_fit():
        assert library.threads == 2


def test_libraries_that_come_later_join_and_leave_with_the_limit(library):
    with limit_threads(1):
        library.threads = 2  # as if freshly loaded
        limit_new_libraries()
        assert library.threads == 1
    assert library.threads == 2
    limit_new_libraries()
    assert library.threads == 2


def test_an_error_inside_gives_the_threads_back(library):
    with pytest.raises(ZeroDivisionError), limit_threads(1):
        raise ZeroDivisionError
    assert library.threads == 2
    with pytest.raises(ValueError, match="threads must be an integer >= 1"), limit_threads(0):
        pass


def test_torch_loaded_by_a_fit_keeps_to_the_limit(tmp_path):
    code = (
        "from liftopt.torch_interop import import_torch\n"
        "from liftopt import limit_threads\n"
        "with limit_threads(1):\n"
        "    torch = import_torch()\n"
        "    print(torch.get_num_threads())"
    )
    free = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=free, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"


def test_a_fit_in_a_fresh_process_takes_one_blas_thread():
    code = (
        "import numpy as np\n"
        "from threadpoolctl import threadpool_info\n"
        "from liftopt import ManifoldClassifier\n"
        "seen = []\n"
        "def look(record):\n"
        "    seen.extend(p['num_threads'] for p in threadpool_info() if p['user_api'] == 'blas')\n"
        "X = np.random.default_rng(0).normal(size=(200, 3))\n"
        "ManifoldClassifier((4,), max_iter=2, callback=look, random_state=0).fit(X, X[:, 0] > 0)\n"
        "print(set(seen))"
    )
    free = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=free, capture_output=True, text=True, check=True
    )
    assert done.stdout == "{1}\n"
