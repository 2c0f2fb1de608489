import gzip
import json
import struct

import numpy as np
import pytest
from sklearn.utils import shuffle

from liftopt import data
from liftopt.readers import columns_from_json, columns_to_json, encode, read_csv, read_idx


def write(path, text):
    path.write_text(text)
    return path


def idx_bytes(array):
    code = {"u1": 0x08, "i2": 0x0B, "f4": 0x0D}[array.dtype.str[1:]]
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def mnist_like(folder, rng, n_train=30, n_test=10):
    folder.mkdir(parents=True)
    for part, n in (("train", n_train), ("t10k", n_test)):
        images = rng.integers(0, 256, (n, 4, 4)).astype(np.uint8)
        labels = (np.arange(n) % 3).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))


@pytest.mark.parametrize("name", ["digits", "iris", "wine", "breast_cancer", "diabetes"])
def test_built_in_sets_need_no_files(name, monkeypatch, tmp_path):
    monkeypatch.setenv("LIFTOPT_DATA", str(tmp_path / "absent"))
    found = data.load(name)
    assert found.X.dtype == np.float32
    assert found.X.shape == (found.y.shape[0], len(found.feature_names))
    assert (len(found.class_names) == 0) == (found.task == "regression") == (name == "diabetes")


def test_random_split_is_stratified_disjoint_and_repeatable():
    iris = data.load("iris")
    split = iris.split(0.2, random_state=4)
    assert np.bincount(split.y_test).tolist() == [10, 10, 10]
    assert split.X_train.shape[0] + split.X_test.shape[0] == 150
    np.testing.assert_array_equal(split.X_test, iris.split(0.2, random_state=4).X_test)
    assert not np.array_equal(split.X_test, iris.split(0.2, random_state=5).X_test)


def test_split_with_a_class_of_one_row():
    X, y = np.arange(20.0)[:, None], np.array([0] * 19 + [1])
    split = data.Dataset("x", X, y, "classification", ("x",), ("0", "1")).split(0.3, random_state=0)
    assert sorted(np.concatenate([split.X_train, split.X_test])[:, 0]) == list(range(20))


def test_idx_folder_keeps_the_standard_split(tmp_path, rng, monkeypatch):
    mnist_like(tmp_path / "mnist", rng)
    monkeypatch.setenv("LIFTOPT_DATA", str(tmp_path))
    found = data.load("mnist")
    split = found.split(random_state=7)
    assert split.X_train.shape == (30, 16)
    assert split.y_test.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert 0.0 <= found.X.min() < found.X.max() <= 1.0
    np.testing.assert_array_equal(data.load(tmp_path / "mnist").X, found.X)


def test_idx_pair_by_path(tmp_path, rng):
    mnist_like(tmp_path / "m", rng)
    (tmp_path / "m" / "train-labels-idx1-ubyte").rename(tmp_path / "m" / "train-labels-idx1-ubyte.gz")
    found = data.load(tmp_path / "m" / "train-images-idx3-ubyte.gz")
    assert found.X.shape == (30, 16)
    assert found.task == "classification"
    with pytest.raises(ValueError, match="labels-idx1-ubyte' beside it"):
        data.load(tmp_path / "m" / "t10k-images-idx3-ubyte.gz")


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
def test_read_idx_round_trip(tmp_path, rng, dtype):
    array = (rng.normal(size=(3, 5)) * 100).astype(dtype)
    (tmp_path / "a").write_bytes(idx_bytes(array))
    np.testing.assert_array_equal(read_idx(tmp_path / "a"), array)


def test_every_truncation_of_an_idx_file_is_refused(tmp_path, rng):
    whole = idx_bytes(rng.integers(0, 256, (3, 2)).astype(np.uint8))
    path = tmp_path / "a"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"truncated|no IDX"):
            read_idx(path)
    packed = gzip.compress(whole)
    for length in range(2, len(packed)):
        path.write_bytes(packed[:length])
        with pytest.raises(ValueError, match=r"truncated|no IDX"):
            read_idx(path)


def test_missing_mnist_offline_says_where_to_put_it(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", offline)
    monkeypatch.setenv("LIFTOPT_DATA", str(tmp_path))
    with pytest.raises(OSError, match=r"fashion_mnist is not in .* Put its four IDX files"):
        data.load("fashion_mnist")


def test_openml_download_is_used_and_split(monkeypatch, tmp_path, rng):
    class Bunch:
        data = rng.integers(0, 256, (60010, 4)).astype(np.int64)
        target = np.array([str(i % 10) for i in range(60010)], dtype=object)

    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda *args, **kwargs: Bunch)
    monkeypatch.delenv("LIFTOPT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data.load("mnist").split().X_test.shape == (10, 4)
    assert data.data_folder() == tmp_path / "liftopt"


def test_npz_with_names_and_several_splits(tmp_path, rng):
    mask = np.zeros((2, 10), dtype=bool)
    mask[0, :3], mask[1, 5:] = True, True
    arrays = {"X": rng.normal(size=(10, 2)), "y": rng.normal(size=10), "test_mask": mask}
    np.savez(tmp_path / "a.npz", feature_names=np.array(["a", "b"]), **arrays)
    found = data.load(tmp_path / "a.npz", dtype=np.float64)
    assert (found.task, found.feature_names, len(found.splits)) == ("regression", ("a", "b"), 2)
    np.testing.assert_array_equal(found.split(random_state=1).y_test, arrays["y"][5:])
    np.testing.assert_array_equal(found.split(random_state=2).X_test, arrays["X"][:3])


def test_npz_that_holds_pickles_or_misses_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "pickled.npz", X=np.array([{"a": 1}], dtype=object), y=np.zeros(1))
    np.savez(tmp_path / "lacking.npz", X=np.zeros((3, 2)), labels=np.zeros(3))
    np.savez(tmp_path / "uneven.npz", X=np.zeros((3, 2)), y=np.zeros(4))
    (tmp_path / "foreign.npz").write_bytes(b"hello")
    for name, message in [
        ("pickled", "cannot be read"),
        ("lacking", "needs arrays named X and y, it holds X, labels"),
        ("uneven", "X holds 3 rows and y 4"),
        ("foreign", "cannot be read"),
    ]:
        with pytest.raises(ValueError, match=message):
            data.load(tmp_path / f"{name}.npz")


CSV = "size;colour;flag;kind\n1;red;True;a\n2;blue;False;b\n3.5;red;True;a\n4;green;False;b\n"


def test_csv_with_text_columns_is_one_hot_encoded(tmp_path):
    found = data.load(write(tmp_path / "a.csv", CSV), target="kind")
    assert found.feature_names == ("size", "colour=blue", "colour=green", "colour=red", "flag")
    assert found.class_names == ("a", "b")
    assert found.y.tolist() == ["a", "b", "a", "b"]
    np.testing.assert_array_equal(found.X[0], [1, 0, 0, 1, 1])


def test_csv_encoding_travels_as_json_to_new_rows(tmp_path):
    found = data.load(write(tmp_path / "a.csv", CSV), target="kind")
    columns = columns_from_json(json.loads(json.dumps(columns_to_json(found.columns))))
    assert columns == found.columns
    path = write(tmp_path / "new.csv", "flag,colour,other,size\nTrue,green,?,7\n")
    np.testing.assert_array_equal(encode(read_csv(path), columns, path), [[7, 0, 1, 0, 1]])
    for text, message in [
        ("flag,colour\nTrue,red\n", "lacks the columns size"),
        ("flag,colour,size\nTrue,pink,1\n", "column 'colour' holds 'pink', which was not there in training"),
        ("flag,colour,size\nTrue,red,big\n", "column 'size' must hold numbers, found 'big'"),
        ("flag,colour,size\nTrue,red,\n", r"missing values in size \(1\)"),
    ]:
        path = write(tmp_path / "bad.csv", text)
        with pytest.raises(ValueError, match=message):
            encode(read_csv(path), columns, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("a,b\n", "no rows"),
        ("a,b,a\n1,2,3\n", "header repeats a"),
        (",a,y\n0,5,1\n1,6,0\n", "column 1 of the header has no name"),
        ("1,2,3\n4,5,6\n", "add a header line"),
        ("a;y\n1,5;0\n2,7;1\n3,1;0\n", "column 'a' holds numbers with a comma, such as '1,5': write a point"),
        ("a,y\n1,0\n,1\n,0\n", r"missing values in a \(2\): remove those rows, fill them"),
        ("a,y\n1,0\n2,\n", "target 'y' is missing in 1 rows"),
        ("a,b\n1,2\n", "no column 'y' to predict; the columns are a, b"),
        ("a,y\n1,0\n2,0\n", r"one class only \(0\)"),
        ("y\n0\n1\n", "no column besides the target"),
        ("a,y\n1,0\n2,1\n?,1\n", "column 'a' holds numbers, but also text in 1 rows, such as '\\?'"),
        ("a,y\n1,0\ninf,1\n", "infinite values in a"),
        ("a,y\n1,0,9\n2,1,9\n", "cannot be read as a CSV table"),
        ("a,y\n1,0\n1,2,3,4\n", "cannot be read as a CSV table"),
        ("id,y\n" + "".join(f"n{i},{i % 2}\n" for i in range(101)), "101 different texts in 101 rows"),
    ],
)
def test_unusable_csv_files_are_explained(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        data.load(write(tmp_path / "a.csv", text), target="y")


def test_csv_without_target_lists_the_columns(tmp_path):
    with pytest.raises(
        ValueError, match=r"name the column to predict .target=, or --target .*; the columns are size"
    ):
        data.load(write(tmp_path / "a.csv", CSV))


GAPS = "size,colour,flag,y\n1,red,True,0\n,blue,,1\n4,,False,0\n9,red,True,1\n"


def test_missing_values_are_filled_on_demand(tmp_path):
    path = write(tmp_path / "a.csv", GAPS)
    found = data.load(path, target="y", fill_missing=True)
    assert found.feature_names == (
        *("size", "colour=", "colour=blue", "colour=red"),
        *("flag=", "flag=False", "flag=True"),
    )
    np.testing.assert_array_equal(
        found.X,
        [[1, 0, 0, 1, 0, 0, 1], [4, 0, 1, 0, 1, 0, 0], [4, 1, 0, 0, 0, 1, 0], [9, 0, 0, 1, 0, 0, 1]],
    )
    columns = columns_from_json(json.loads(json.dumps(columns_to_json(found.columns))))
    assert columns == found.columns
    new = read_csv(write(tmp_path / "new.csv", "colour,flag,size\nred,False,\nblue,True,2\n"))
    np.testing.assert_array_equal(encode(new, columns, path), [[4, 0, 0, 1, 0, 1, 0], [2, 0, 1, 0, 0, 0, 1]])


def test_filling_changes_nothing_where_nothing_is_missing_and_does_not_reach_further(tmp_path):
    path = write(tmp_path / "a.csv", "size,colour,y\n1,red,0\n2,blue,1\n5,red,0\n")
    filled = data.load(path, target="y", fill_missing=True)
    np.testing.assert_array_equal(filled.X, data.load(path, target="y").X)
    gap = read_csv(write(tmp_path / "new.csv", "size,colour\n,red\n"))
    assert encode(gap, filled.columns, path)[0, 0] == 2.0
    gap = read_csv(write(tmp_path / "new.csv", "size,colour\n3,\n"))
    with pytest.raises(ValueError, match=r"missing values in colour \(1\)"):
        encode(gap, filled.columns, path)
    with pytest.raises(ValueError, match="column 'a' holds no value in any row"):
        data.load(write(tmp_path / "b.csv", "a,b,y\n,1,0\n,2,1\n"), target="y", fill_missing=True)


def test_csv_as_latin_1_is_refused_with_the_reason(tmp_path):
    (tmp_path / "a.csv").write_bytes("größe,y\n1,0\n2,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="cannot be read as a CSV table"):
        data.load(tmp_path / "a.csv", target="y")


def test_missing_pandas_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match=r"liftopt\[cli\]"):
        data.load(write(tmp_path / "a.csv", CSV), target="kind")


@pytest.mark.parametrize(
    ("y", "task"),
    [
        (np.arange(60), "regression"),
        (np.arange(60) % 50, "classification"),
        (np.arange(60) / 7, "regression"),
        (np.arange(60) % 2 == 0, "classification"),
        (np.array(["a", "b"] * 30), "classification"),
    ],
)
def test_task_follows_the_target_unless_given(tmp_path, y, task):
    np.savez(tmp_path / "a.npz", X=np.zeros((60, 1)), y=y)
    assert data.load(tmp_path / "a.npz").task == task
    if y.dtype.kind != "U":
        assert data.load(tmp_path / "a.npz", task="regression").y.dtype == np.float64
    else:
        with pytest.raises(ValueError, match="must be numeric"):
            data.load(tmp_path / "a.npz", task="regression")


def test_unknown_names_and_files():
    with pytest.raises(ValueError, match="unknown data set 'mnits'; give a path or one of digits"):
        data.load("mnits")
    with pytest.raises(FileNotFoundError, match=r"no file absent\.csv"):
        data.load("absent.csv")
    with pytest.raises(ValueError, match="dtype must be float32 or float64"):
        data.load("iris", dtype=np.int32)
    with pytest.raises(ValueError, match="task must be"):
        data.load("iris", task="ranking")  # type: ignore[arg-type]


def test_sets_outside_the_package_name_their_file(tmp_path, monkeypatch):
    monkeypatch.setenv("LIFTOPT_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"LIFTOPT_DATA to the folder that holds letter/letter\.npz"):
        data.load("letter")
    X, y = shuffle(np.eye(26).repeat(2, axis=0), np.arange(26).repeat(2), random_state=0)
    (tmp_path / "letter").mkdir()
    np.savez(
        tmp_path / "letter" / "letter.npz", X=X, y=y, train_idx=np.arange(40), test_idx=np.arange(40, 52)
    )
    assert data.load("letter").split().X_test.shape == (12, 26)
