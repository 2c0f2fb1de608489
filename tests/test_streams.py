"""Streams: every source gives the same rows, bad chunks are named, and executors change no bit."""

import gzip
import struct
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liftopt import ChunkError, stream
from liftopt.chunks import chunk_ranges
from liftopt.executor import JoblibExecutor
from liftopt.solvers import (
    moments,
    ridge_path_moments,
    search_gram,
    solve_ridge,
    solve_ridge_folds,
    solve_ridge_moments,
)
from liftopt.streams import as_stream, parse_bytes, show_bytes

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")
da = pytest.importorskip("dask.array")

N, D = 300, 5
LIMIT = 16 * 8 * D * 64  # chunks of 64 float64 rows


@pytest.fixture
def data(rng):
    X = rng.normal(size=(N, D)) + 1.0
    return X, X @ rng.normal(size=D) + rng.normal(size=N), rng.integers(1, 4, N).astype(float)


def table(data):
    X, y, weight = data
    return pd.DataFrame({**{f"f{i}": X[:, i] for i in range(D)}, "price": y, "mass": weight})


def npy(folder, data):
    for name, array in zip(("X", "y", "w"), data, strict=True):
        np.save(folder / f"{name}.npy", array)
    return {"X": folder / "X.npy", "y": folder / "y.npy", "sample_weight": folder / "w.npy"}


def several_npy(folder, data):
    X, y, weight = data
    for i, part in enumerate(np.array_split(X, 3)):
        np.save(folder / f"X{i}.npy", part)
    return {"X": [folder / f"X{i}.npy" for i in range(3)], "y": y, "sample_weight": weight}


def mapped(folder, data):
    npy(folder, data)
    X, y, weight = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in "Xyw")
    return {"X": X, "y": y, "sample_weight": weight}


def parquet(folder, data):
    table(data).to_parquet(folder / "t.parquet", row_group_size=70)
    return {"X": folder / "t.parquet", "target": "price", "sample_weight": "mass"}


def csv(folder, data):
    table(data).to_csv(folder / "t.csv", index=False)
    return {"X": str(folder / "t.csv"), "target": "price", "sample_weight": "mass"}


def several_csv(folder, data):
    frame = table(data)
    frame[:111].to_csv(folder / "a.csv", index=False, sep=";")
    frame[111:].to_csv(folder / "b.csv", index=False, sep=";")
    return {"X": [folder / "a.csv", folder / "b.csv"], "target": "price", "sample_weight": "mass"}


def dask_arrays(folder, data):
    X, y, weight = (da.from_array(array, chunks=77) for array in data)
    return {"X": X, "y": y, "sample_weight": weight}


def dask_frame(folder, data):
    frames = pytest.importorskip("dask.dataframe")
    frame = frames.from_pandas(table(data), npartitions=4)
    return {"X": frame, "target": "price", "sample_weight": "mass"}


def arrays(folder, data):
    X, y, weight = data
    return {"X": X.tolist(), "y": y, "sample_weight": weight}


SOURCES = [npy, several_npy, mapped, parquet, csv, several_csv, dask_arrays, dask_frame, arrays]


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_rows(source, data, tmp_path):
    rows = stream(**source(tmp_path, data), memory_limit=LIMIT, executor="serial")
    assert (rows.n_rows, rows.n_features, str(rows.dtype)) == (N, D, "float64")
    assert all(chunk.stop - chunk.start <= 64 for chunk in rows.chunks)
    assert len(rows.chunks) >= 5
    for loaded, array in zip(rows.load(), data, strict=True):
        np.testing.assert_allclose(np.asarray(loaded), array, rtol=1e-12)
    X, y, weight = data
    expected = moments(X, y, sample_weight=weight)
    found = rows.moments()
    np.testing.assert_allclose(found.gram, expected.gram, rtol=1e-10)
    np.testing.assert_allclose(found.cross, expected.cross, rtol=1e-9)


def test_chunks_travel_as_loaders(data, tmp_path):
    import pickle

    for source in (npy, mapped, parquet, csv):
        rows = stream(**source(tmp_path, data), memory_limit=2**20)
        assert len(pickle.dumps(rows.chunks[0])) < 2000  # whereas the rows are 12,000 bytes


@pytest.mark.parametrize("executor", ["serial", "auto", JoblibExecutor(2)])
def test_executors_do_not_change_a_bit(executor, data, tmp_path):
    sources = npy(tmp_path, data)
    expected = stream(**sources, memory_limit=LIMIT, executor="serial").moments(dtype=np.float32)
    found = stream(**sources, memory_limit=LIMIT, executor=executor).moments(dtype=np.float32)
    for name in ("gram", "cross", "mean_x", "mean_y", "target_square"):
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes()


def test_dask_workers_do_not_change_a_bit(data, tmp_path):
    distributed = pytest.importorskip("distributed")
    sources = [npy(tmp_path, data), parquet(tmp_path, data), csv(tmp_path, data), dask_arrays(tmp_path, data)]
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        for source in sources:
            expected = stream(**source, memory_limit=LIMIT, executor="serial").moments()
            found = stream(**source, memory_limit=LIMIT, executor=client).moments()
            assert found.gram.tobytes() == expected.gram.tobytes()
            assert found.cross.tobytes() == expected.cross.tobytes()


@given(rows=st.integers(1, 400))
def test_chunkings_agree_to_rounding(rows):
    rng = np.random.default_rng(7)
    X, y = rng.normal(size=(150, 3)) + 10.0, rng.normal(size=(150, 2))
    found = stream(X, y, memory_limit=16 * 3 * 8 * rows, executor="serial").moments()
    expected = moments(X, y)
    np.testing.assert_allclose(found.gram, expected.gram, rtol=1e-11)
    np.testing.assert_allclose(found.cross, expected.cross, rtol=1e-9, atol=1e-10)
    assert found.n_rows == 150


@given(
    n=st.integers(1, 50), size=st.integers(1, 60), cuts=st.lists(st.integers(1, 49), unique=True, max_size=6)
)
def test_ranges_cover_all_rows_once(n, size, cuts):
    edges = [0, *sorted(cut for cut in cuts if cut < n), n]
    for given_cuts in ((), edges):
        ranges = chunk_ranges(n, size, given_cuts)
        assert [row for start, stop in ranges for row in range(start, stop)] == list(range(n))
        assert all(0 < stop - start <= size for start, stop in ranges)


def test_ridge_and_its_path_come_from_a_stream(data, tmp_path):
    X, y, _ = data
    rows = stream(X, y, memory_limit=LIMIT, executor="serial")
    streamed = solve_ridge_moments(rows.moments(), alpha=2.0).x
    whole = solve_ridge(X, y, alpha=2.0).x
    np.testing.assert_allclose(streamed.weight, whole.weight, rtol=1e-9)
    path = ridge_path_moments(rows.moments())
    np.testing.assert_allclose(path.at(2.0).weight, whole.weight, rtol=1e-9)
    chosen = solve_ridge_folds(rows.fold_moments(4), alphas=np.logspace(-3, 3, 7))
    assert 1e-3 <= chosen.info["alpha"] <= 1e3
    with pytest.raises(ValueError, match="folds need as many chunks"):
        rows.fold_moments(40)


def test_ternary_weights_come_from_a_stream(data):
    X, y, _ = data
    rows = stream(X, y, memory_limit=LIMIT, executor="serial")
    streamed, whole = rows.moments(), moments(X, y)
    found = search_gram((streamed.gram + streamed.gram.T) / 2, streamed.cross).x
    expected = search_gram((whole.gram + whole.gram.T) / 2, whole.cross).x
    assert (found.codes == expected.codes).all()


def test_samples_are_rows_in_order(data):
    X, y, weight = data
    rows = stream(X, y, sample_weight=weight, memory_limit=LIMIT, executor="serial")
    part, target, mass = rows.sample(50, random_state=1)
    index = [int(np.flatnonzero((row == X).all(axis=1))[0]) for row in part]
    assert index == sorted(set(index))
    assert len(index) == 50
    assert (target == y[index]).all()
    assert (mass == weight[index]).all()
    assert rows.sample(10**6)[0].shape == X.shape


def test_progress_is_reported(data):
    X, y, _ = data
    seen: list[dict[str, int]] = []
    rows = stream(X, y, memory_limit=LIMIT, executor="serial", callback=seen.append)
    rows.moments()
    assert seen == [{"chunk": i, "chunks": 5} for i in range(1, 6)]
    seen.clear()
    list(rows.map(len))
    assert len(seen) == 5


def test_images_are_scaled_and_labels_are_not(tmp_path):
    pixels = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 6, 2, 2)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    labels = bytes([0, 0, 8, 1]) + struct.pack(">I", 6) + bytes(range(6))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    rows = stream(tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte.gz")
    X, y, _ = rows.load()
    assert X.dtype == np.float32
    np.testing.assert_array_equal(X, pixels.reshape(6, 4) / np.float32(255))
    assert y is not None
    assert y.tolist() == list(range(6))


def test_text_targets(tmp_path):
    frame = pd.DataFrame({"a": np.arange(6.0), "kind": list("xyxyxx")})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        rows = stream(tmp_path / name, target="kind")
        assert rows.feature_names == ("a",)
        assert np.asarray(rows.load()[1]).tolist() == list("xyxyxx")
        with pytest.raises(ChunkError, match=r"column 'kind' holds no numbers|conversion error"):
            stream(tmp_path / name, memory_limit="1 MiB").load()


def test_bad_rows_are_named(data, tmp_path):
    X, y, _ = data
    sources = npy(tmp_path, data)
    X[130, 2] = np.nan
    np.save(tmp_path / "X.npy", X)
    rows = stream(**sources, memory_limit=LIMIT, executor="serial")
    place = r"chunk 3 of 5 \(rows 128 to 191 of .*X.npy\)"
    with pytest.raises(ChunkError, match=place):
        rows.moments()
    with pytest.raises(ChunkError, match=place + ".*first in row 130"):
        list(rows.map(len))
    y[7] = np.inf
    with pytest.raises(ChunkError, match=r"chunk 1 of 5 .*y is NaN or infinite in 1 rows, first in row 7"):
        stream(np.ones((N, D)), y, memory_limit=LIMIT, executor="serial").moments()
    with pytest.raises(ChunkError, match=place):
        stream(**sources, memory_limit=LIMIT, executor=JoblibExecutor(2)).moments()


def test_truncated_and_missing_files(data, tmp_path):
    sources = npy(tmp_path, data)
    rows = stream(**sources, memory_limit=LIMIT, executor="serial")
    whole = (tmp_path / "X.npy").read_bytes()
    (tmp_path / "X.npy").write_bytes(whole[:-4000])
    with pytest.raises(ChunkError, match=r"chunk 4 of 5 .*is truncated: it ends after row 200 of 300"):
        rows.moments()
    with pytest.raises(ChunkError, match="is truncated: it ends after row 200 of 300"):
        stream(**sources)
    (tmp_path / "X.npy").unlink()
    with pytest.raises(ChunkError, match=r"chunk 1 of 5 .*No such file"):
        rows.moments()
    with pytest.raises(FileNotFoundError, match="there is no file"):
        stream(**sources)
    (tmp_path / "X.npy").write_bytes(b"what is this")
    with pytest.raises(ChunkError, match=r"is no \.npy file"):
        stream(**sources)


@pytest.mark.parametrize("kind", [parquet, csv])
def test_damaged_tables(kind, data, tmp_path):
    sources = kind(tmp_path, data)
    rows = stream(**sources, memory_limit=LIMIT, executor="serial")
    path = tmp_path / ("t.parquet" if kind is parquet else "t.csv")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ChunkError, match=r"chunk \d of \d .*"):
        rows.moments()
    if kind is parquet:
        with pytest.raises(ChunkError, match="truncated or no Parquet file"):
            stream(**sources)


def test_tables_refuse_text_and_gaps(data, tmp_path):
    frame = table(data)
    frame.loc[200, "f1"] = np.nan
    frame.to_csv(tmp_path / "gap.csv", index=False)
    with pytest.raises(ChunkError, match=r"chunk 4 of 6 .*NaN"):
        stream(tmp_path / "gap.csv", target="price", memory_limit=LIMIT, executor="serial").moments()
    frame["f1"] = "text"
    frame.to_parquet(tmp_path / "text.parquet")
    with pytest.raises(ChunkError, match="column 'f1' holds no numbers: encode it"):
        stream(tmp_path / "text.parquet", target="price")
    frame.to_csv(tmp_path / "text.csv", index=False)
    with pytest.raises(ChunkError, match=r"chunk 1 of .*cannot be read as such a table.*text"):
        stream(tmp_path / "text.csv", target="price", executor="serial").moments()


def test_parts_must_fit_each_other(data, tmp_path):
    X, y, _ = data
    np.save(tmp_path / "a.npy", X)
    np.save(tmp_path / "b.npy", X[:, :3])
    np.save(tmp_path / "c.npy", (X > 0).astype("U1"))
    with pytest.raises(ChunkError, match=r"b.npy holds rows of shape \(3,\), .*a.npy of \(5,\)"):
        stream([tmp_path / "a.npy", tmp_path / "b.npy"])
    with pytest.raises(ChunkError, match=r"c.npy holds <U1, .*a.npy float64"):
        stream([tmp_path / "a.npy", tmp_path / "c.npy"])
    rows = stream(tmp_path / "a.npy", y, memory_limit=LIMIT, executor="serial")
    np.save(tmp_path / "a.npy", X.astype(np.float32))  # a file that was changed
    with pytest.raises(ChunkError, match=r"chunk 3 of 5 .*is truncated"):
        rows.moments()
    frame = table(data)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.rename(columns={"f1": "g1"}).to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(ChunkError, match="name their columns differently"):
        stream([tmp_path / "a.csv", tmp_path / "b.csv"], target="price")


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda: np.ones((60, D)), r"holds rows of shape \(60, 5\), expected \(64, 5\)"),
        (lambda: np.ones((64, 3)), r"holds rows of shape \(64, 3\), expected \(64, 5\)"),
        (lambda: np.full((64, D), "a"), "holds <U1, which are no numbers"),
    ],
)
def test_what_a_reader_gives_is_checked(read, message, data):
    X, y, _ = data
    rows = stream(X, y, memory_limit=LIMIT, executor="serial")
    chunks = list(rows.chunks)
    chunks[1] = replace(chunks[1], loaders=(read, *chunks[1].loaders[1:]))
    rows.chunks = tuple(chunks)
    with pytest.raises(ChunkError, match=rf"chunk 2 of 5 \(rows 64 to 127 of .*{message}"):
        rows.moments()
    chunks[1] = replace(chunks[1], loaders=(chunks[0].loaders[0], lambda: y[:9], None))
    rows.chunks = tuple(chunks)
    with pytest.raises(ChunkError, match=r"chunk 2 of 5 .*y has 9 entries for 64 rows"):
        rows.moments()


def test_arguments_are_checked(data, tmp_path):
    X, y, _ = data
    with pytest.raises(ChunkError, match="X has 300 rows, y has 299"):
        stream(X, y[:-1])
    with pytest.raises(ValueError, match="belong to a table"):
        stream(X, target="price")
    with pytest.raises(ValueError, match="X must hold rows of features"):
        stream(y)
    with pytest.raises(ValueError, match="memory_limit must be a size"):
        stream(X, y, memory_limit="much")
    with pytest.raises(ValueError, match="too small for rows of 40 bytes"):
        stream(X, y, memory_limit=100)
    with pytest.raises(ValueError, match="needs targets"):
        stream(X).moments()
    with pytest.raises(ValueError, match="holds its own y"):
        as_stream(stream(X, y), y)
    (tmp_path / "x.txt").write_text("1")
    with pytest.raises(ValueError, match=r"streams read \.npy"):
        stream(tmp_path / "x.txt")
    whole = da.from_array(X)
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        stream(whole[whole[:, 0] > 0])
    sources = parquet(tmp_path, data)
    with pytest.raises(ValueError, match="has no column 'cost'; it begins with f0, f1"):
        stream(sources["X"], target="cost")
    with pytest.raises(ValueError, match="give y= or target="):
        stream(sources["X"], y, target="price")
    np.save(tmp_path / "F.npy", np.asfortranarray(X))
    with pytest.raises(ValueError, match="in Fortran order: save"):
        stream(tmp_path / "F.npy")


def test_views_of_maps_are_arrays(data, tmp_path):
    X, y, _ = data
    np.save(tmp_path / "X.npy", X)
    view = np.load(tmp_path / "X.npy", mmap_mode="r")[10:]
    np.testing.assert_array_equal(stream(view, y[10:]).load()[0], X[10:])


@pytest.mark.parametrize(
    ("text", "size"), [("512", 512), ("2 kB", 2000), ("1.5 GiB", 3 * 2**29), ("64MiB", 2**26), (7, 7)]
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


def test_sizes_are_shown():
    assert show_bytes(3 * 2**29) == "1.5 GiB"
    assert show_bytes(100) == "100 bytes"
    rows = stream(np.ones((10, 2)), memory_limit="1 GiB", executor="serial")
    assert repr(rows) == (
        "Stream of 10 rows, 2 features (float64) in 1 chunks, memory_limit 1 GiB, SerialExecutor"
    )


def test_what_fits_is_loaded_and_the_rest_says_what_to_do(data):
    X, y, _ = data
    assert stream(X, y).load_for("X")[0].shape == X.shape
    with pytest.raises(ValueError, match=r"X works on all rows at once and needs about 46.9 KiB.*sample"):
        stream(X, y, memory_limit=LIMIT).load_for("X")


def test_tasks_are_pure_functions_of_rows(data):
    X, y, _ = data
    rows = stream(X, y, memory_limit=LIMIT, executor="serial")
    assert sum(rows.map(partial(lambda scale, part: scale * part.X.sum(), 2.0))) == pytest.approx(2 * X.sum())


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_left_out_count_nothing_even_whole_chunks_of_them(data, weighted):
    X, y, weight = data
    weight = weight if weighted else None
    left_out = np.r_[200, 0:130]
    rows = stream(X, y, sample_weight=weight, memory_limit=LIMIT, executor="serial").without(left_out)
    kept = np.setdiff1d(np.arange(N), left_out)
    expected = moments(X[kept], y[kept], sample_weight=None if weight is None else weight[kept])
    found = rows.moments()
    np.testing.assert_allclose(found.gram, expected.gram, rtol=1e-10)
    np.testing.assert_allclose(found.cross, expected.cross, rtol=1e-9)
    assert found.weight == expected.weight
    with pytest.raises(IndexError, match="not all among the 300"):
        rows.without(np.array([7, 300]))
    with pytest.raises(ChunkError, match=r"chunk 1 of .*sample_weight must be non-negative"):
        stream(X, y, sample_weight=-np.ones(N), memory_limit=LIMIT, executor="serial").moments()
