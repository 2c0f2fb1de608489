import json
import math
import os
import signal
from typing import Any, ClassVar

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from liftopt.compare import compare
from liftopt.comparison import Comparison, Run, format_bytes, format_seconds
from liftopt.data import Dataset, load
from liftopt.entrants import Entrant, baselines
from liftopt.methods import METHODS, Method
from liftopt.report import render

pytestmark = pytest.mark.usefixtures("stand_ins")


def iris():
    X, y = load_iris(return_X_y=True)
    return Dataset("iris", X, y, "classification", ("a", "b", "c", "d"), ("s", "v", "w"))


def add_method(monkeypatch, stand_ins, name, estimator):
    setattr(stand_ins, name, estimator)
    monkeypatch.setitem(METHODS, name, Method("stand_ins", name, name))


def make_run(method="linear", repeat=0, score=0.9, **changes):
    return Run(method, repeat, score, **{"wall": 1.0, "cpu": 1.0, **changes})


def make_comparison(runs, **changes):
    fields: dict[str, Any] = {
        "data": "toy",
        "task": "classification",
        "methods": ("linear", "adam"),
        "baselines": ("adam",),
        "runs": tuple(runs),
        "skipped": {},
        "failed": {},
        "interrupted": False,
        "settings": {"repeats": 2},
        "environment": {},
    }
    return Comparison(**(fields | changes))


def test_every_method_and_every_baseline_runs_once_a_repeat():
    result = compare(iris(), repeats=2, hidden_layer_sizes=(7,))
    assert result.methods == ("linear", *(b.name for b in baselines(120)))
    assert sorted((r.method, r.repeat) for r in result.runs) == sorted(
        (m, k) for m in result.methods for k in range(2)
    )
    assert all(0.7 < run.score <= 1.0 for run in result.runs)
    assert all(run.n_parameters == 15 and run.nbytes == 120 and run.n_iter == 3 for run in result.runs)
    assert not result.interrupted
    assert not result.skipped
    assert not result.failed


def test_score_is_the_test_accuracy_of_the_split():
    data = iris()
    result = compare(data, repeats=2, random_state=5, methods=["linear"])
    for run in result.runs_of("linear"):
        split = data.split(random_state=5 + run.repeat)
        rows = np.column_stack([split.X_train, np.ones(len(split.X_train))])
        onehot = np.eye(3)[split.y_train]
        solution = np.linalg.lstsq(rows, onehot, rcond=None)[0]
        predicted = (np.column_stack([split.X_test, np.ones(len(split.X_test))]) @ solution).argmax(axis=1)
        assert run.score == pytest.approx(np.mean(predicted == split.y_test))


def test_only_baselines_are_tuned_and_the_search_is_timed_apart():
    result = compare(iris(), repeats=1)
    for run in result.runs:
        tuned = run.method in result.baselines
        assert (run.validation_score is not None) == tuned
        assert (run.search_cpu > 0) == tuned
        assert (run.search_wall > 0) == tuned
    assert result.reference in result.baselines


class Reporter(ClassifierMixin, BaseEstimator):
    """Predicts well only for one rate, and notes what it was fitted on."""

    seen: ClassVar[list[Any]] = []

    def __init__(
        self,
        input_map=None,
        learning_rate_init=0.1,
        max_iter=1,
        early_stopping=False,
        n_iter_no_change=1,
        random_state=None,
    ):
        self.input_map = input_map
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.early_stopping = early_stopping
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state

    def fit(self, X, y):
        rate = f"{self.learning_rate_init}{' held out' if self.early_stopping else ''}"
        Reporter.seen.append((rate, self.max_iter, self.random_state, len(X)))
        good = self.learning_rate_init == 3e-3
        self.model_ = LogisticRegression(max_iter=1000).fit(X, y if good else np.roll(y, 1))
        return self

    def predict(self, X):
        return self.model_.predict(X)


def test_grid_is_judged_on_held_out_training_rows_and_the_best_refitted_on_all(monkeypatch, stand_ins):
    monkeypatch.setattr(stand_ins, "Classifier", Reporter)
    monkeypatch.setattr(Reporter, "seen", [])
    result = compare(iris(), repeats=1, methods=[], random_state=3)
    assert [run.parameters["learning_rate_init"] for run in result.runs] == [3e-3, 3e-3]
    short, long = 5 + 417, 20 + 1667  # epochs for 120 rows
    after_warm_up = Reporter.seen[2:]
    assert after_warm_up[:6] == [
        ("0.003", short, 3, 96),
        ("0.01", short, 3, 96),
        ("0.003", long, 3, 96),
        ("0.01", long, 3, 96),
        ("0.003", short, 3, 120),
        ("0.003 held out", short, 3, 120),
    ]


def test_a_standard_split_is_searched_once(monkeypatch, stand_ins):
    monkeypatch.setattr(stand_ins, "Classifier", Reporter)
    monkeypatch.setattr(Reporter, "seen", [])
    data = iris()
    rows = np.random.default_rng(0).permutation(150)
    standard = Dataset(**{**vars(data), "splits": ((rows[:100], rows[100:]),)})
    result = compare(standard, repeats=3, methods=[])
    assert len(Reporter.seen) == 2 * (1 + 4 + 3 * 2)
    searches = {(run.method, run.search_cpu) for run in result.runs}
    assert len(searches) == 2
    assert len(result.runs) == 6


def test_an_estimator_without_hidden_layers_takes_part(monkeypatch, stand_ins):
    class Plain(LogisticRegression):
        pass

    add_method(monkeypatch, stand_ins, "plain", Plain)
    result = compare(iris(), methods=["plain"], repeats=1)
    (row,) = [row for row in result.rows if row.method == "plain"]
    assert row.score > 0.9
    assert row.n_parameters is None
    assert row.seconds_to_target is None


def test_missing_extra_is_skipped_and_failure_is_reported(monkeypatch, stand_ins):
    class NeedsExtra(LogisticRegression):
        def fit(self, X, y):
            raise ImportError("needs the extra: pip install 'liftopt[extra]'")

    class Broken(LogisticRegression):
        def fit(self, X, y):
            raise ValueError("cannot do this")

    add_method(monkeypatch, stand_ins, "extra", NeedsExtra)
    add_method(monkeypatch, stand_ins, "broken", Broken)
    result = compare(iris(), repeats=2)
    assert "liftopt[extra]" in result.skipped["extra"]
    assert result.failed == {"broken": "ValueError: cannot do this"}
    assert len(result.runs_of("linear")) == 2
    assert any("extra was skipped" in notice for notice in result.notices)
    assert any("broken failed" in notice for notice in result.notices)


def test_ctrl_c_keeps_what_is_done(monkeypatch, stand_ins):
    class Impatient(LogisticRegression):
        fits = 0

        def fit(self, X, y):
            Impatient.fits += 1
            if Impatient.fits == 3:  # warm-up, first repeat, second repeat
                try:
                    os.kill(os.getpid(), signal.SIGINT)
                    signal.sigtimedwait([], 1)
                except KeyboardInterrupt:
                    pass  # as our methods do: return the best so far
            return super().fit(X, y)

    add_method(monkeypatch, stand_ins, "impatient", Impatient)
    before = signal.getsignal(signal.SIGINT)
    result = compare(iris(), repeats=5)
    assert signal.getsignal(signal.SIGINT) is before
    assert result.interrupted
    assert len(result.runs_of("impatient")) == 1
    assert len(result.runs_of("linear")) == 2
    assert any("Interrupted" in notice for notice in result.notices)
    assert "linear" in str(result)


def test_ctrl_c_that_reaches_the_comparison_ends_it_too(monkeypatch, stand_ins):
    class Aborting(LogisticRegression):
        fits = 0

        def fit(self, X, y):
            Aborting.fits += 1
            if Aborting.fits == 2:
                raise KeyboardInterrupt
            return super().fit(X, y)

    add_method(monkeypatch, stand_ins, "aborting", Aborting)
    result = compare(iris(), repeats=2)
    assert result.interrupted
    assert [run.method for run in result.runs] == ["linear"]


def test_regression_is_scored_by_r2():
    result = compare("diabetes", repeats=1)
    assert result.task == "regression"
    assert result.metric == "R²"
    assert 0.2 < result.runs[0].score < 0.7


def test_progress_counts_every_fit_once():
    seen = []
    compare(iris(), repeats=2, progress=lambda *facts: seen.append(facts))
    done, planned, _ = zip(*seen, strict=True)
    assert set(planned) == {2 * (1 + 2 * 6)}
    assert list(done) == sorted(done)
    assert done[-1] == planned[0] - 1


def test_same_seed_gives_the_same_scores():
    first, second = (compare(iris(), repeats=2, random_state=1) for _ in range(2))
    assert [run.score for run in first.runs] == [run.score for run in second.runs]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["magic"]}, "unknown method 'magic'; choose one of linear, adam"),
        ({"repeats": 0}, "repeats must be an integer >= 1"),
        ({"threads": 0}, "threads must be an integer >= 1"),
        ({"hidden_layer_sizes": (0,)}, "hidden_layer_sizes must be an integer >= 1"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        compare(iris(), **arguments)


def test_names_and_paths_are_loaded():
    assert compare("iris", repeats=1).data == "iris"
    assert load("iris").name == "iris"


def test_common_parameters_reach_the_estimator_that_knows_them():
    entrant = Entrant("linear", "linear", {"input_map": "whiten"})
    estimator = entrant.estimator("classification", {"hidden_layer_sizes": (3,), "unknown": 1})
    assert estimator.hidden_layer_sizes == (3,)
    assert estimator.input_map == "whiten"


def history(*scores):
    return [{"cpu": float(k), "validation_score": s} for k, s in enumerate(scores, 1)]


def test_seconds_to_the_baseline_come_from_the_histories():
    runs = [
        make_run("adam", 0, validation_score=0.9, history=history(0.5, 0.8)),
        make_run("adam", 1, validation_score=0.9, history=history(0.7, 0.9)),
        make_run("linear", 0, history=history(0.6, 0.7, 0.86)),
        make_run("linear", 1, history=history(0.9)),
    ]
    result = make_comparison(runs)
    assert result.target == pytest.approx(0.85)
    rows = {row.method: row for row in result.rows}
    assert rows["linear"].seconds_to_target == pytest.approx(2.0)  # median of 3 and 1
    assert math.isinf(rows["adam"].seconds_to_target)  # reached in one repeat of two
    assert "not reached" in str(result)


def test_the_reference_is_chosen_by_validation_not_by_test():
    runs = [
        make_run("adam", score=0.99, validation_score=0.8),
        make_run("adam 2", score=0.90, validation_score=0.9),
    ]
    result = make_comparison(runs, methods=("adam", "adam 2"), baselines=("adam", "adam 2"))
    assert result.reference == "adam 2"


def test_summary_names_losses():
    runs = [make_run("linear", score=0.90), make_run("adam", score=0.95, validation_score=0.9)]
    assert "Behind adam on the test rows: linear (by 5.00 points)." in make_comparison(runs).summary


def test_no_finished_run_is_said():
    result = make_comparison([], interrupted=True)
    assert result.summary == ("No run was finished.",)
    assert result.reference is None
    assert result.rows == ()


def test_json_is_complete_and_strict(tmp_path):
    path = tmp_path / "out.json"
    result = compare(iris(), repeats=1)
    result.save_json(path)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads(path.read_text(), parse_constant=refuse)
    assert record["reference"] == result.reference
    assert [row["method"] for row in record["table"]] == list(result.methods)
    assert record["runs"][0]["history"][0]["validation_score"] == 0.5
    assert record["settings"]["n_train"] == 120
    assert set(record["settings"]["grids"]) == set(result.baselines)
    assert record["table"][0]["spread"] == "nan"


def test_formats():
    assert [format_seconds(s) for s in (0.0123, 1.234, 123.4, math.inf)] == [
        "0.012",
        "1.23",
        "123",
        "not reached",
    ]
    assert [format_bytes(b) for b in (12, 2048, 3 * 2**20)] == ["12 B", "2 KiB", "3 MiB"]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_recipes_show_the_gain_and_cost_of_every_stage(monkeypatch, stand_ins):
    monkeypatch.setitem(
        METHODS, "fenchel", Method("liftopt.fenchel", "FenchelClassifier", "FenchelRegressor")
    )
    result = compare(iris(), methods=["linear+fenchel"], repeats=2, hidden_layer_sizes=(6,))
    assert not result.failed
    for run in result.runs_of("linear+fenchel"):
        first, second = run.stages
        assert (first.name, second.name) == ("linear", "fenchel")
        assert second.score == run.score
        assert 0 < first.cpu < second.cpu <= run.cpu
        assert {record["stage"] for record in run.history} == {"linear", "fenchel"}
    whole, part, *_ = result.rows
    assert (whole.method, whole.stage, part.method, part.stage) == (
        "linear+fenchel",
        None,
        "linear+fenchel",
        "linear",
    )
    assert part.cpu < whole.cpu
    text = str(result)
    assert text.index("linear+fenchel") < text.index("  after linear ")
    page = render(result)
    assert "after linear" in page
    assert page.count("linear+<wbr>fenchel") == 1
    assert len(result.to_dict()["runs"][0]["stages"]) == 2
