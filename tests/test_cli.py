import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_iris

from liftopt import Network, __version__
from liftopt.cli import main
from liftopt.methods import METHODS
from liftopt.model import predict_table

ROOT = Path(__file__).parent.parent


def write_csv(path, rows):
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return path


def read_csv(text):
    return list(csv.reader(io.StringIO(text)))


@pytest.fixture
def table(tmp_path):
    """Iris with a text column that repeats what one number says, and text labels."""
    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])
    rows = [[*x, "wide" if x[3] > 1 else "narrow", names[k]] for x, k in zip(X, y, strict=True)]
    return write_csv(tmp_path / "train.csv", [["sl", "sw", "pl", "pw", "petal", "label"], *rows])


def run(*arguments, cwd=None, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "liftopt", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
        timeout=300,
        check=False,
        **options,
    )


def call(*arguments):
    return main([str(argument) for argument in arguments])


def fitted(table, tmp_path, *more):
    model = tmp_path / "model.safetensors"
    assert call("fit", table, "--target", "label", "--method", "linear", "--out", model, *more) == 0
    return model


def error_line(capsys):
    """The one line on stderr."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("liftopt: error: ")]
    assert len(lines) == 1
    return lines[0]


def test_version_and_help_work_as_a_program():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"liftopt {__version__}\n")
    done = run("--help")
    assert done.returncode == 0
    for words in ("compare", "fit", "predict", "export", "doctor", "examples:", "exit codes:", "130"):
        assert words in done.stdout


@pytest.mark.parametrize("command", ["compare", "fit", "predict", "export", "doctor"])
def test_every_command_explains_itself_with_examples(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for words in (f"usage: liftopt {command}", f"\n  liftopt {command} ", "--json FILE", "exit codes:"):
        assert words in text


def test_help_is_light():
    code = (
        "import sys; from liftopt.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'pandas', 'rich', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["magic"],
        ["compare"],
        ["compare", "digits", "--methods", "magic"],
        ["compare", "digits", "--repeats", "0"],
        ["compare", "digits", "--hidden", "3,x"],
        ["fit", "digits"],
        ["fit", "digits", "--method", "magic", "--out", "m"],
        ["fit", "digits", "--method", "linear+magic", "--out", "m"],
        ["predict", "model"],
        ["export", "model"],
        ["export", "model", "--to", "pdf"],
        ["doctor", "please"],
    ],
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: liftopt" in capsys.readouterr().err


def test_unknown_method_lists_the_known_ones(stand_ins, capsys):
    with pytest.raises(SystemExit):
        main(["compare", "digits", "--methods", "linear,magic"])
    assert "unknown method 'magic'; choose one of linear, adam" in capsys.readouterr().err


def test_compare_prints_the_table_and_where_the_files_are(stand_ins, table, tmp_path, capsys):
    report, record = tmp_path / "r.html", tmp_path / "r.json"
    code = call("compare", table, "--target", "label", "--repeats", 2, "--report", report, "--json", record)
    assert code == 0
    out, err = capsys.readouterr()
    assert f"report: {report}" in out
    assert f"json: {record}" in out
    assert "linear" in out
    assert "adam, our input map" in out
    assert "[0/26] linear, repeat 1" in err
    assert "<!doctype html>" in report.read_text()
    assert json.loads(record.read_text())["data"] == "train"


def test_compare_of_a_regression_table(stand_ins, tmp_path, capsys):
    X, y = load_diabetes(return_X_y=True)
    rows = [[*x, t] for x, t in zip(X, y, strict=True)]
    path = write_csv(tmp_path / "d.csv", [[*"abcdefghij", "progress"], *rows])
    code = call("compare", path, "--target", "progress", "--repeats", 1, "--report", tmp_path / "r.html")
    assert code == 0
    assert "R²" in capsys.readouterr().out


def test_output_paths_are_checked_before_the_work(stand_ins, tmp_path, capsys):
    assert call("compare", "digits", "--report", tmp_path / "none" / "r.html") == 1
    assert "does not exist" in error_line(capsys)
    assert call("fit", "digits", "--method", "linear", "--out", tmp_path) == 1
    assert "is a folder" in error_line(capsys)


def test_ctrl_c_exits_with_130_and_still_writes_the_report(stand_ins, monkeypatch, tmp_path, capsys):
    original = stand_ins.Classifier.fit
    fits = []

    def fit(self, X, y):
        fits.append(1)
        if len(fits) == 5:  # three warm-ups, the first method, then the first baseline is stopped
            raise KeyboardInterrupt
        return original(self, X, y)

    monkeypatch.setattr(stand_ins.Classifier, "fit", fit)
    report = tmp_path / "r.html"
    assert call("compare", "iris", "--report", report) == 130
    assert "Finished runs: 1 of 9" in capsys.readouterr().out
    assert "Interrupted" in report.read_text()


def test_ctrl_c_while_fitting_exits_with_130(stand_ins, monkeypatch, tmp_path, capsys):
    def fit(self, X, y):
        raise KeyboardInterrupt

    monkeypatch.setattr(stand_ins.Classifier, "fit", fit)
    assert call("fit", "iris", "--method", "linear", "--out", tmp_path / "m") == 130
    assert capsys.readouterr().err.endswith("liftopt: interrupted\n")
    assert not (tmp_path / "m").exists()


def test_predictions_restore_labels_and_match_columns_by_name(stand_ins, table, tmp_path, capsys):
    model = fitted(table, tmp_path)
    header, *rows = read_csv(table.read_text())
    order = [4, 2, 0, 3, 1]
    shuffled = [[header[k] for k in order], *([row[k] for k in order] for row in rows)]
    new, out = write_csv(tmp_path / "new.csv", shuffled), tmp_path / "out.csv"
    assert call("predict", model, new, "--out", out) == 0
    found = read_csv(out.read_text())
    assert found[0] == ["label", "probability"]
    labels = [row[0] for row in found[1:]]
    assert np.mean([a == row[-1] for a, row in zip(labels, rows, strict=True)]) > 0.8
    assert all(1 / 3 <= float(row[1]) <= 1 for row in found[1:])
    capsys.readouterr()
    assert call("predict", model, table) == 0  # the target column may be there
    printed = capsys.readouterr()
    assert [row[0] for row in read_csv(printed.out)[1:]] == labels
    assert printed.err == ""


def test_integer_labels_stay_integers(stand_ins, tmp_path, capsys):
    model = tmp_path / "m.safetensors"
    assert call("fit", "iris", "--method", "linear", "--out", model) == 0
    X, _ = load_iris(return_X_y=True)
    new = write_csv(tmp_path / "new.csv", [load_iris().feature_names, *X.tolist()])
    capsys.readouterr()
    assert call("predict", model, new) == 0
    assert {row[0] for row in read_csv(capsys.readouterr().out)[1:]} <= {"0", "1", "2"}


def test_regression_predictions_are_numbers(stand_ins, tmp_path, capsys):
    model = tmp_path / "m.safetensors"
    assert call("fit", "diabetes", "--method", "linear", "--out", model) == 0
    X, y = load_diabetes(return_X_y=True)
    new = write_csv(tmp_path / "new.csv", [load_diabetes().feature_names, *X.tolist()])
    capsys.readouterr()
    assert call("predict", model, new) == 0
    header, *rows = read_csv(capsys.readouterr().out)
    assert header == ["target"]
    assert np.corrcoef([float(row[0]) for row in rows], y)[0, 1] > 0.6


def test_extra_columns_are_named_and_ignored(stand_ins, table, tmp_path, capsys):
    model = fitted(table, tmp_path)
    rows = read_csv(table.read_text())
    new = write_csv(tmp_path / "n.csv", [[*row, "colour" if k == 0 else "x"] for k, row in enumerate(rows)])
    capsys.readouterr()
    assert call("predict", model, new) == 0
    assert "not used: colour" in capsys.readouterr().err


def without_column(rows, k):
    return [row[:k] + row[k + 1 :] for row in rows]


def with_entry(rows, k, value):
    return [rows[0], [*rows[1][:k], value, *rows[1][k + 1 :]], *rows[2:]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: without_column(rows, 2), "lacks the columns pl"),
        (lambda rows: with_entry(rows, 0, ""), "missing values in sl (1)"),
        (lambda rows: with_entry(rows, 0, "many"), "column 'sl' must hold numbers, found 'many'"),
        (lambda rows: with_entry(rows, 4, "round"), "holds 'round', which was not there in training"),
        (lambda rows: rows[:1], "a header, but no rows"),
    ],
)
def test_predict_names_what_is_wrong_with_the_table(stand_ins, table, tmp_path, capsys, change, message):
    model = fitted(table, tmp_path)
    new = write_csv(tmp_path / "new.csv", change(read_csv(table.read_text())))
    capsys.readouterr()
    assert call("predict", model, new) == 1
    assert message in error_line(capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b,label\n", "a header, but no rows"),
        ("a,a,label\n1,2,x\n3,4,y\n", "the header repeats a"),
        ("a,b,label\n1,,x\n3,4,y\n", "missing values in b (1)"),
        ("a,b,label\n1,2,\n3,4,y\n", "the target 'label' is missing in 1 rows"),
        ("a,b,label\n1,2,x\n3,4,x\n", "one class only"),
        ("a,b,label\n1,two,x\n3,4,y\n5,6,y\n", "column 'b' holds numbers, but also text"),
        ("a,b\n1,2\n3,4\n", "no column 'label' to predict; the columns are a, b"),
        ("label\nx\ny\n", "no column besides the target"),
    ],
)
@pytest.mark.parametrize("command", ["compare", "fit"])
def test_bad_tables_are_explained(stand_ins, tmp_path, capsys, command, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    more = (
        ["--report", tmp_path / "r"]
        if command == "compare"
        else ["--method", "linear", "--out", tmp_path / "m"]
    )
    assert call(command, path, "--target", "label", *more) == 1
    assert message in error_line(capsys)


def test_a_table_with_gaps_is_trained_and_predicted_on_demand(stand_ins, table, tmp_path, capsys):
    gaps = with_entry(with_entry(read_csv(table.read_text()), 0, ""), 4, "")
    path, model = write_csv(tmp_path / "gaps.csv", gaps), tmp_path / "m.safetensors"
    fit = ("fit", path, "--target", "label", "--method", "linear", "--out", model)
    assert call(*fit) == 1
    assert "missing values in sl (1), petal (1)" in error_line(capsys)
    assert call(*fit, "--fill-missing") == 0
    capsys.readouterr()
    assert call("predict", model, path) == 0
    assert len(read_csv(capsys.readouterr().out)) == 151


def test_ctrl_c_in_a_loop_saves_the_best_network_and_exits_with_130(tmp_path, monkeypatch, capsys):
    def interrupted(self, loss):
        raise KeyboardInterrupt

    monkeypatch.setattr("liftopt.manifold_fit.SweepSearch._record", interrupted)
    model, record = tmp_path / "m.safetensors", tmp_path / "m.json"
    assert call("fit", "iris", "--method", "manifold+fenchel", "--out", model, "--json", record) == 130
    assert "the best network so far is kept" in capsys.readouterr().err
    assert Network.load(model).output_shape == (3,)
    found = json.loads(record.read_text())
    assert found["interrupted"]
    assert [stage["name"] for stage in found["stages"]] == ["manifold"]


def test_missing_files_and_unknown_names(stand_ins, tmp_path, capsys):
    assert call("fit", tmp_path / "no.csv", "--method", "linear", "--out", tmp_path / "m") == 1
    assert "there is no file" in error_line(capsys)
    assert call("fit", "nodata", "--method", "linear", "--out", tmp_path / "m") == 1
    assert "unknown data set 'nodata'" in error_line(capsys)
    assert call("predict", tmp_path / "no.safetensors", tmp_path / "no.csv") == 1
    assert error_line(capsys) == f"liftopt: error: {tmp_path / 'no.safetensors'}: No such file or directory"


def test_damaged_and_foreign_models_are_refused(stand_ins, table, tmp_path, capsys):
    model = fitted(table, tmp_path)
    whole = model.read_bytes()
    capsys.readouterr()
    for damaged in (whole[: len(whole) // 2], whole[:3], b"not a model", b""):
        model.write_bytes(damaged)
        assert call("predict", model, table) == 1
        assert "truncated" in error_line(capsys)


def test_a_model_without_table_facts_says_so(stand_ins, table, tmp_path, capsys):
    model = fitted(table, tmp_path)
    network = Network.load(model)
    Network(network.layers, network.input_shape).save(model)
    capsys.readouterr()
    assert call("predict", model, table) == 1
    assert "liftopt fit" in error_line(capsys)


def test_predict_table_in_python(stand_ins, table, tmp_path):
    model = fitted(table, tmp_path)
    predictions, ignored = predict_table(Network.load(model), table)
    assert list(predictions.columns) == ["label", "probability"]
    assert ignored == []


def test_a_closed_pipe_is_no_traceback(stand_ins, table, tmp_path):
    model = fitted(table, tmp_path)
    command = f'"{sys.executable}" -m liftopt predict "{model}" "{table}" | head -c 1 > /dev/null'
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert "Traceback" not in done.stderr


def test_bad_input_as_a_program_gives_one_line_and_code_1(tmp_path):
    (tmp_path / "bad.csv").write_text("a,label\n1,x\n2,x\n")
    done = run("compare", "bad.csv", "--target", "label", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("liftopt: error: ")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.slow
def test_ctrl_c_on_the_running_program(tmp_path):
    """A SIGINT in the middle of the second baseline: the first one is reported."""
    command = [sys.executable, "-m", "liftopt", "compare", "digits", "--methods", "adam", "--hidden", "20"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    ) as program:
        assert program.stderr is not None
        for line in program.stderr:
            if "adam, our input map, tuning" in line:
                program.send_signal(signal.SIGINT)
                break
        out, _ = program.communicate(timeout=120)
    assert program.returncode == 130
    assert "Finished runs: 1 of 6" in out
    assert "Interrupted" in (tmp_path / "liftopt-report.html").read_text()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_saves_and_predicts(method, table, tmp_path, capsys):
    model = tmp_path / "model.safetensors"
    assert call("fit", table, "--target", "label", "--method", method, "--hidden", 8, "--out", model) == 0
    capsys.readouterr()
    assert call("predict", model, table) == 0
    labels = [row[0] for row in read_csv(capsys.readouterr().out)[1:]]
    truth = [row[-1] for row in read_csv(table.read_text())[1:]]
    assert np.mean([a == b for a, b in zip(labels, truth, strict=True)]) > 0.8


def json_of(capsys):
    return json.loads(capsys.readouterr().out)


def test_every_command_gives_json(stand_ins, table, tmp_path, capsys):
    model, target = tmp_path / "model.safetensors", ["--target", "label"]
    assert call("fit", table, *target, "--method", "linear", "--out", model, "--json", "-") == 0
    record = json_of(capsys)
    assert record["model"] == str(model)
    assert (record["rows"], record["metric"], record["stages"]) == (150, "accuracy", [])
    assert record["training_score"] > 0.8
    assert set(record["seconds"]) == {"wall", "cpu"}

    assert call("predict", model, table, "--json", "-") == 0
    found = json_of(capsys)
    assert set(found) == {"predictions", "ignored_columns"}
    assert len(found["predictions"]["label"]) == len(found["predictions"]["probability"]) == 150

    assert call("export", model, "--to", "onnx", "--json", "-") == 0
    exported = json_of(capsys)
    assert exported["bytes"] == Path(exported["file"]).stat().st_size
    assert exported["largest_difference"] < 1e-5

    report = tmp_path / "r.html"
    assert call("compare", table, *target, "--repeats", 1, "--report", report, "--json", "-") == 0
    assert json_of(capsys)["methods"][0] == "linear"

    assert call("doctor", "--json", tmp_path / "d.json") == 0
    assert f"json: {tmp_path / 'd.json'}" in capsys.readouterr().out
    assert json.loads((tmp_path / "d.json").read_text())["required"]["numpy"] == np.__version__


def test_json_and_out_folders_are_checked_before_the_work(stand_ins, tmp_path, capsys):
    assert call("doctor", "--json", tmp_path / "none" / "d.json") == 1
    assert "does not exist" in error_line(capsys)
    assert call("export", tmp_path / "no.safetensors", "--to", "onnx", "--out", tmp_path) == 1
    assert "is a folder" in error_line(capsys)


@pytest.mark.parametrize(("to", "suffix"), [("onnx", ".onnx"), ("torch", ".pt")])
def test_export_writes_beside_the_model_or_where_it_is_told(stand_ins, table, tmp_path, capsys, to, suffix):
    model = fitted(table, tmp_path)
    assert call("export", model, "--to", to) == 0
    assert f"{to}: {tmp_path / 'model'}{suffix}" in capsys.readouterr().out
    assert call("export", model, "--to", to, "--out", tmp_path / "other") == 0
    assert (tmp_path / "other").read_bytes()[:4] == (tmp_path / f"model{suffix}").read_bytes()[:4]
    model.write_bytes(b"")
    assert call("export", model, "--to", to) == 1
    assert "truncated" in error_line(capsys)


def test_missing_onnx_is_no_traceback(stand_ins, table, tmp_path, capsys, monkeypatch):
    model = fitted(table, tmp_path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert call("export", model, "--to", "onnx") == 1
    assert "pip install 'liftopt[onnx]'" in error_line(capsys)
    assert not (tmp_path / "model.onnx").exists()


def test_recipes_on_the_command_line(tmp_path, capsys):
    model, common = tmp_path / "m.safetensors", ["--hidden", 8, "--json", "-"]
    assert call("fit", "iris", "--method", "manifold+fenchel", "--out", model, *common) == 0
    record = json_of(capsys)
    assert [stage["name"] for stage in record["stages"]] == ["manifold", "fenchel"]
    assert record["stages"][1]["training_score"] == record["training_score"] > 0.9
    assert 0 < record["stages"][0]["cpu"] < record["stages"][1]["cpu"]
    assert call("fit", "iris", "--method", "manifold+fenchel", "--out", model, "--hidden", 8) == 0
    assert "after manifold: training accuracy" in capsys.readouterr().out
    assert call("fit", "iris", "--method", "manifold+spline", "--out", model) == 1
    assert "spline does not start from a network" in error_line(capsys)


def test_doctor_speaks_to_people(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LIFTOPT_DATA", str(tmp_path / "none"))
    assert call("doctor") == 0
    text = capsys.readouterr().out
    assert f"liftopt {__version__}, Python" in text
    assert f"numpy {np.__version__}" in text
    assert "hint: the data folder" in text
