import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from liftopt import limit_threads
from liftopt.threads import VARIABLES, limit_new_libraries, threads_of_a_fit

ROOT = Path(__file__).parent.parent


def threads():
    np.eye(2) @ np.eye(2)
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.fixture
def no_choice(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with threadpool_limits(2, user_api="blas"):
        if threads() != {2}:
            pytest.skip("this BLAS library has one thread only")
        yield


@pytest.mark.usefixtures("no_choice")
def test_a_fit_takes_one_thread_and_gives_the_others_back():
    with threads_of_a_fit():
        assert threads() == {1}
        with threads_of_a_fit():
            assert threads() == {1}
        assert threads() == {1}
    assert threads() == {2}


@pytest.mark.usefixtures("no_choice")
def test_a_chosen_number_holds_inside_of_fits(monkeypatch):
    with limit_threads(2), threads_of_a_fit():
        assert threads() == {2}
    with limit_threads(2), limit_threads(1), threads_of_a_fit():
        assert threads() == {1}
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with threads_of_a_fit():
        assert threads() == {2}


@pytest.mark.usefixtures("no_choice")
def test_libraries_that_come_later_join_and_leave_with_the_limit():
    with limit_threads(1):
        threadpool_limits(2)  # as if freshly loaded
        limit_new_libraries()
        assert threads() == {1}
    assert threads() == {2}
    limit_new_libraries()
    assert threads() == {2}


@pytest.mark.usefixtures("no_choice")
def test_an_error_inside_gives_the_threads_back():
    with pytest.raises(ZeroDivisionError), limit_threads(1):
        raise ZeroDivisionError
    assert threads() == {2}
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
