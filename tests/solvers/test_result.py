import dataclasses
import itertools

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from liftopt.solvers import Measure, Result, SolverError, Status, iterate
from liftopt.solvers.result import conclude


def halve(x):
    return x / 2.0


def distance(x):
    return Measure(x**2, {"stationarity": abs(x)}, {"half": x / 2})


def run(step=halve, state=1.0, measure=distance, **settings):
    return iterate(step, state, measure=measure, **({"max_iter": 100} | settings))


def test_the_loop_stops_at_the_tolerance_with_the_residual_of_the_returned_state():
    found = run(tol=1e-3)
    assert found.status is Status.OPTIMAL
    assert found.n_iter == 10
    assert found.state == 2.0**-10
    assert found.measure.residuals == {"stationarity": found.state}
    assert "largest residual 9.77e-04 after 10 iterations" in found.message


def test_a_solved_problem_costs_no_step():
    found = run(step=lambda x: pytest.fail("no step is needed"), state=0.0, tol=0.0)
    assert (found.status, found.n_iter, len(found.history)) == (Status.OPTIMAL, 0, 1)


def test_every_measured_iteration_is_in_the_history():
    found = run(max_iter=7, check_every=3)
    assert [record["iteration"] for record in found.history] == [0, 3, 6, 7]
    assert [record["objective"] for record in found.history] == [4.0**-k for k in (0, 3, 6, 7)]
    assert found.history[1]["half"] == 2.0**-4
    times = [record["time"] for record in found.history]
    assert times == sorted(times)
    assert found.time >= times[-1]


def test_the_iteration_budget_ends_the_run():
    found = run(max_iter=4)
    assert (found.status, found.n_iter) == (Status.MAX_ITER, 4)
    assert found.status.is_limit
    assert found.message.endswith("increase max_iter or loosen tol")
    assert run(max_iter=0).n_iter == 0


def test_the_time_limit_ends_the_run():
    found = run(time_limit=0.0)
    assert (found.status, found.n_iter) == (Status.TIME_LIMIT, 0)
    assert "increase time_limit" in found.message


def test_no_progress_is_a_stall():
    found = run(step=lambda x: x, stall_after=3)
    assert (found.status, found.n_iter) == (Status.STALLED, 3)
    assert "float64" in found.message


def test_progress_below_the_relative_threshold_is_a_stall():
    assert run(step=lambda x: x * 0.999, stall_after=2, stall_rtol=0.1).status is Status.STALLED
    assert run(step=lambda x: x * 0.9, stall_after=2, stall_rtol=0.1).status is Status.MAX_ITER


def test_a_rise_between_improvements_is_no_stall():
    values = itertools.cycle([0.5, 1.8])
    found = run(step=lambda x: x * next(values), stall_after=2, max_iter=20)
    assert found.status is Status.MAX_ITER


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_nonfinite_step_returns_the_state_before_it(bad):
    states = iter([0.5, bad])
    found = run(step=lambda x: next(states), measure=lambda x: Measure(x, {"r": 1.0}))
    assert found.status is Status.NONFINITE
    assert (found.state, found.n_iter) == (0.5, 2)
    assert found.measure.objective == 0.5
    assert len(found.history) == 2


def test_a_residual_that_is_nan_is_nonfinite():
    found = run(measure=lambda x: Measure(1.0, {"a": 0.0, "b": np.nan}))
    assert found.status is Status.NONFINITE
    assert run(state=np.nan).status is Status.NONFINITE


def test_without_residuals_no_tolerance_is_met():
    assert Measure(0.0).worst == np.inf
    assert run(measure=lambda x: Measure(0.0), tol=1e9).status is Status.MAX_ITER


def test_the_callback_sees_every_record_and_may_stop():
    seen = []

    def stop_at_third(record):
        seen.append(record["iteration"])
        return len(seen) == 3

    found = run(callback=stop_at_third)
    assert (found.status, found.n_iter, seen) == (Status.INTERRUPTED, 2, [0, 1, 2])
    assert not found.status.is_limit
    assert run(callback=lambda record: True, tol=10.0).status is Status.OPTIMAL


def test_a_run_becomes_a_result():
    found = run(tol=1e-3)
    result = found.result("x", gap=0.5, status=Status.LOCAL_OPTIMUM)
    assert (result.x, result.gap, result.status) == ("x", 0.5, Status.LOCAL_OPTIMUM)
    assert (result.objective, result.n_iter) == (found.measure.objective, 10)
    assert result.history is found.history
    assert result.success


def test_results_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Result(0, 0.0, Status.OPTIMAL).objective = 1.0  # type: ignore[misc]


def test_every_status_belongs_to_one_group():
    groups = {
        status: (Result(0, 0.0, status).success, status.is_limit, status.is_failure) for status in Status
    }
    assert all(sum(group) == 1 for status, group in groups.items() if status is not Status.INTERRUPTED)
    assert groups[Status.INTERRUPTED] == (False, False, False)


def test_failures_raise_and_limits_follow_the_caller():
    for status in Status:
        result = Result(0, 0.0, status, message="why")
        if status.is_failure:
            for choice in ("warn", "raise", "ignore"):
                with pytest.raises(SolverError, match=f"{status}: why") as caught:
                    conclude(result, choice)
                assert caught.value.result is result
        elif status.is_limit:
            with pytest.warns(ConvergenceWarning, match=f"{status}: why"):
                assert conclude(result) is result
            with pytest.raises(SolverError):
                conclude(result, "raise")
            assert conclude(result, "ignore") is result
        else:
            assert conclude(result, "raise") is result


def test_an_unknown_choice_for_limits_is_refused():
    with pytest.raises(ValueError, match="on_limit must be 'warn', 'raise' or 'ignore', got 'shrug'"):
        conclude(Result(0, 0.0, Status.OPTIMAL), "shrug")  # type: ignore[arg-type]


def test_a_residual_cannot_be_negative():
    with pytest.raises(ValueError, match="stationarity is negative"):
        Result(0.0, 0.0, Status.OPTIMAL, residuals={"stationarity": -1e-9})
