"""The benchmark helpers: records, tables, the tuned baseline; the scripts run in `make bench-quick`."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_iris

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    """Importer of the scripts, as they import each other."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")

    def get(name: str) -> ModuleType:
        monkeypatch.delitem(sys.modules, name, raising=False)
        return __import__(name)

    return get


def test_record_is_sorted_complete_and_apart_for_quick_runs(benchmarks, tmp_path, monkeypatch):
    common: Any = benchmarks("common")
    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    path = common.write_record("claim", {"seeds": [0], "scores": np.arange(2) / 2, "n": np.int64(3)})
    text = path.read_text()
    record = json.loads(text)
    assert text == json.dumps(record, indent=1, sort_keys=True) + "\n"
    assert (record["claim"], record["scores"], record["n"]) == ("claim", [0.0, 0.5], 3)
    assert record["environment"]["threads"] == 1
    assert record["environment"]["packages"]["numpy"] == np.__version__
    quick = common.write_record("claim", {"seeds": []}, quick=True)
    assert quick.parent == tmp_path / "results" / "quick"
    assert path.read_text() == text
    with pytest.raises(ValueError, match="does not say which seeds"):
        common.write_record("claim", {})


def test_a_record_is_stale_when_the_code_it_measured_has_changed(benchmarks, tmp_path, monkeypatch):
    run: Any = benchmarks("run")

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a", "-C", str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def record(commit: str | None) -> None:
        (folder / "results" / "one.json").write_text(json.dumps({"environment": {"commit": commit}}))

    folder = tmp_path / "benchmarks"
    script = folder / "one.py"
    for path in (tmp_path / "liftopt" / "a.py", folder / "results" / "x", folder / "other.py", script):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "one")
    monkeypatch.setattr(run, "FOLDER", folder)
    assert run.is_stale(script)  # no record
    commit = git("rev-parse", "--short=12", "HEAD")
    record(commit)
    assert not run.is_stale(script)
    (folder / "other.py").write_text("2")
    assert not run.is_stale(script)
    for unknown in (f"{commit}-dirty", None, "0" * 12):
        record(unknown)
        assert run.is_stale(script)
    record(commit)
    for path in (script, tmp_path / "liftopt" / "a.py"):
        path.write_text("2")
        assert run.is_stale(script)
        git("checkout", "-q", "--", str(path))


def test_measure_and_median(benchmarks):
    common: Any = benchmarks("common")
    measured = common.measure(lambda: sum(range(200_000)))
    assert measured.value == 199_999 * 100_000
    assert measured.cpu > 0
    assert measured.wall > 0
    assert common.median_iqr([3.0, 1.0, 2.0]) == (2.0, 1.0)
    assert common.median_iqr([1.0, np.inf, np.inf])[0] == np.inf


def test_tuning_sees_training_rows_only_and_records_the_search(benchmarks):
    common: Any = benchmarks("common")
    X, y = load_iris(return_X_y=True)
    tuning = common.tune_adam(
        X, y, task="classification", trials=4, batch_sizes=(16, 64), hidden_layer_sizes=(8,), max_iter=10
    )
    assert len(tuning.trials) == 4
    assert tuning.validation_score == max(trial["validation_score"] for trial in tuning.trials)
    assert tuning.parameters["batch_size"] in (16, 64)
    assert 5e-4 <= tuning.parameters["learning_rate_init"] <= 5e-2
    assert tuning.parameters["max_iter"] == 10
    assert tuning.cpu > 0
    json.dumps(tuning.record())
    again = common.tune_adam(
        X, y, task="classification", trials=4, batch_sizes=(16, 64), hidden_layer_sizes=(8,), max_iter=10
    )
    assert again.trials == tuning.trials


def test_tables_are_rendered_from_records_only(benchmarks, tmp_path, monkeypatch):
    tables: Any = benchmarks("tables")
    table: dict[str, Any] = {
        "title": "Speed",
        "columns": ["set", "s"],
        "rows": [["a|b", 1.23456], ["c", None]],
        "notes": ["n1"],
    }
    where: dict[str, Any] = {
        "processor": "P",
        "cores": 2,
        "threads": 1,
        "python": "3",
        "packages": {"numpy": "2", "torch": None},
    }
    where["commit"] = "abc"
    script = {"cpu_s": 1.6}
    record: dict[str, Any] = {
        "claim": "speed", "table": table, "seeds": [0, 1], "script": script, "environment": where,
    }  # fmt: skip
    text = tables.render(record)
    assert "## Speed\n\n| set | s |\n| --- | --- |\n| a\\|b | 1.235 |\n| c | - |\n\n- n1\n\n" in text
    assert "seeds [0, 1]" in text
    assert "torch" not in text
    assert tables.render({**record, "table": [table, table]}).count("## Speed") == 2
    assert tables.render({key: value for key, value in record.items() if key != "table"}) == ""
    with pytest.raises(ValueError, match="a row has 1 cells"):
        tables.render({**record, "table": {**table, "rows": [["a"]]}})


def test_runner_names_unknown_benchmarks(benchmarks):
    run: Any = benchmarks("run")
    known = [path.stem for path in run.scripts([])]
    assert not {"common", "run", "tables"} & set(known)
    with pytest.raises(SystemExit, match="no benchmark nope; there are"):
        run.scripts(["nope"])


def test_figures_draw_ternary_networks_at_their_packed_bytes(benchmarks):
    figures: Any = benchmarks("figures")
    columns = ["task", "method", "test error %", "bytes"]
    rows = [
        ["LeNet on MNIST", figures.SEARCH, 1.0, 10],
        ["LeNet on MNIST", figures.THROUGH, 2.0, 160],
        ["Iris", figures.THROUGH, 50.0, 99],
    ]
    found = figures.mnist_rows({"table": {"columns": columns, "rows": rows}})
    assert [row["bytes"] for row in found] == [10, 10]
    series = figures.accuracy_series(found, "bytes")
    assert [(list(s.x), list(s.y)) for s in series[:2]] == [([10], [99.0]), ([10], [98.0])]
    assert not any(s.x for s in series[2:])


def test_losses_are_listed_however_small_and_counted_in_the_profile(benchmarks):
    losses: Any = benchmarks("losses")
    pairs = [
        losses.Pair("one", "ours", "Adam", 90.0, 90.01, 0.5),
        losses.Pair("two", "ours", "Adam", 95.0, 90.0, 2.0),
        losses.Pair("three", "ours", "trees", 60.0, 70.0, 3.0),
    ]
    text = losses.section("some_claim", pairs)
    assert "2 of 3 comparisons lost" in text
    assert text.index("| three | ours | 60.00 | trees | 70.00 | 10.00 |") < text.index("| one | ours |")
    assert "| two |" not in text
    (series,) = losses.profile(pairs)
    assert series.y[0] == pytest.approx(100 / 3)
    assert series.y[-1] == 100.0
    adam, trees = losses.summary({"some_claim": pairs}).splitlines()[2:]
    assert adam == "| ours | Adam | `some_claim` | 2 | 2 | 0 | +2.49 | 0.01 (one) | 1 |"
    assert trees == "| ours | trees | `some_claim` | 1 | 0 | 1 | -10.00 | 10.00 (three) | 3 |"
    assert "| never | 2 |" in losses.summary({"some_claim": pairs[1:2]})


def test_every_record_of_the_losses_page_can_be_read(benchmarks):
    losses: Any = benchmarks("losses")
    for claim, read in losses.SOURCES.items():
        record = json.loads((FOLDER / "results" / f"{claim}.json").read_text())
        pairs = list(read(record))
        assert pairs
        assert all(0 <= value <= 100 for pair in pairs for value in (pair.score, pair.rival_score))
        assert all(pair.time > 0 for pair in pairs)


def test_the_decision_table_is_that_of_the_records(benchmarks, tmp_path, monkeypatch):
    choosing: Any = benchmarks("choosing")
    page = tmp_path / "choosing.md"
    text = (FOLDER.parent / "docs" / "choosing.md").read_text()
    page.write_text(text.replace("ahead or level", "far ahead"))
    monkeypatch.setattr(choosing, "TARGET", page)
    monkeypatch.setattr(sys.modules["common"], "ROOT", tmp_path)
    choosing.main()
    assert page.read_text() == text
    lines = choosing.table().splitlines()
    assert len(lines) == 2 + len(choosing.ROWS)
    assert all(line.count(" | ") == 2 for line in lines)


def test_figures_draw_sampling_curves_where_a_variant_exists(benchmarks):
    figures: Any = benchmarks("figures")
    variants = {name: {"mean_curve": [None, 0.5]} for name in figures.VARIANTS}
    series = figures.loss_series({"variants": variants})
    assert [(list(one.x), list(one.y)) for one in series] == [([100.0], [0.5])] * len(variants)


def test_sampling_study_compares_with_the_plain_optimiser_seed_by_seed(benchmarks):
    study: Any = benchmarks("weight_sampling")
    plain = np.array([[4.0, 3.0, 2.0, 1.0, 1.0, 1.0], [8.0, 6.0, 4.0, 2.0, 2.0, 2.0]])
    quicker = np.array([[1.0, 1.0, 1.0, 1.0, 1.0, 0.5], [9.0, 2.0, 2.0, 2.0, 2.0, 1.5]])
    found = study.summary(quicker, plain, None)
    assert found["ratio"] == pytest.approx(np.sqrt(1 / 4 * 2 / 4))
    assert found["share_of_budget"] == pytest.approx(np.mean([1 / 6, 2 / 6]))
    assert found["gain"] == pytest.approx(0.5)
    assert found["not_reached"] == 0
    assert study.summary(plain + 1, plain, None)["not_reached"] == 2
    assert study.detrended(np.array([1.0, 2.0, 3.0])) == pytest.approx(0.0, abs=1e-12)
    curves = {
        "put back": plain,
        "last: period mean": plain + np.array([[0.5], [0.6]]),
        "rate x centroid: period mean": plain - np.array([[0.1], [-0.1]]),
    }
    verdicts = {name: found["verdict"] for name, found in study.put_back_verdict(curves).items()}
    assert verdicts == {"same average": "wins", "rate x centroid": "level"}


def test_sampling_goals_are_counted_by_kind_of_case(benchmarks):
    study: Any = benchmarks("weight_sampling")

    def entry(ratio, volatility, verdict):
        variants = {name: {"ratio": 1.0, "volatility_ratio": 1.0} for name in study.OPTIONS}
        variants["put back"] = {"ratio": ratio, "volatility_ratio": volatility}
        verdicts = {name: {"verdict": verdict} for name in ("same average", "rate x centroid")}
        case = {"model": "mlp", "noise": 0.2, "schedule": "constant"}
        return {"case": case, "variants": variants, "put_back": verdicts}

    table = study.reached_table([entry(0.5, 0.2, "wins"), entry(0.8, 0.5, "loses")])
    kind, *cells = table["rows"][0]
    assert kind == "784-300-10, noisy labels, constant"
    assert cells[:4] == ["2 of 2", "0.50 to 0.80", "1 of 2", "0.20 to 0.50"]
    assert cells[4:] == ["1 wins, 1 loses"] * 2


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_members_of_an_ensemble_train_as_they_would_alone(benchmarks, monkeypatch, rng, optimizer):
    runs: Any = benchmarks("sampling_runs")
    import torch

    X, y = torch.from_numpy(rng.normal(size=(300, 5)).astype(np.float32)), torch.arange(300) % 10
    parts = {name: (X, y) for name in ("validation", "held_out", "test")}
    monkeypatch.setitem(runs._CACHE, ("mnist", "mlp"), runs.Rows(X, y, parts))
    monkeypatch.setattr(runs, "POOL", 300)
    monkeypatch.setattr(runs, "BATCH", 16)
    case = runs.Case("mnist", 0.1, optimizer, "cosine", rows=96)
    together = runs.run(case, [3, 4], 0.01, {"reinsert": True}, label="put back")
    alone = runs.run(case, [4], 0.01, {"reinsert": True}, label="put back")
    np.testing.assert_allclose(together.curve("put back")[1], alone.curve("put back")[0], rtol=1e-5)


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_every_script_can_be_imported(benchmarks, name):
    assert benchmarks(name).__doc__
