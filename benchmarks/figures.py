"""Draw the pictures of the method pages from the records.

Ternary networks: test accuracy on MNIST against bytes and against CPU time, one mark a network, one series a
method. Rounding alone would flatten the rest and is left to the tables. Straight-through networks are ternary
too: they are drawn at the bytes of the search's network of the same shape, though the records saved them as
floats.

Fenchel networks: median test accuracy against median CPU time, one mark a budget, beside both Adams.

Weight sampling: mean validation loss along the run, one curve a variant, for the cases named below.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from common import RESULTS, ROOT, median_iqr

from liftopt.network import write_atomically
from liftopt.svg import Axis, Series, standalone

RECORDS = ("ternary_mnist", "ternary_report")
SEARCH, THROUGH = "ternary search", "straight-through"
METHODS = (SEARCH, THROUGH, "float start (manifold)", "float back-propagation")
CURVES = {
    "refine_adam": "mnist, 20 % noise, 784-300-10, adam, constant",
    "refine_sgd": "fashion_mnist, 20 % noise, 784-300-10, sgd, constant",
}
VARIANTS = {
    "last": "last weights",
    "last: 6 period means": "mean of 6 periods",
    "6 means, own rate": "mean of 6 periods, own rate",
    "put back": "put back",
    "put back, rate / centroid": "put back, rate / centroid",
    "rate x centroid: period mean": "period mean, rate x centroid",
    "Lookahead": "Lookahead",
    "Schedule-Free": "Schedule-Free",
}
PICTURES = {
    "ternary_bytes": Axis("bytes", log=True),
    "ternary_time": Axis("CPU s", log=True),
}


def mnist_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the record's table that were measured on MNIST, by column name; bytes as packed."""
    table = record["table"]
    place, *columns = table["columns"]
    rows = [{"network": row[0], **dict(zip(columns, row[1:], strict=True))} for row in table["rows"]]
    rows = [row for row in rows if place == "network" or row["network"].endswith("on MNIST")]
    packed = {row["network"]: row["bytes"] for row in rows if row["method"] == SEARCH}
    for row in rows:
        if row["method"] == THROUGH:
            row["bytes"] = packed[row["network"]]
    return rows


def accuracy_series(rows: Sequence[Mapping[str, Any]], column: str) -> list[Series]:
    """Test accuracy in percent against ``column``, one series a method."""
    series = []
    for colour, method in enumerate(METHODS):
        group = [row for row in rows if row["method"] == method]
        accuracy = [100 - row["test error %"] for row in group]
        series.append(Series(method, [row[column] for row in group], accuracy, colour, joined=False))
    return series


def budget_series(curves: Mapping[str, Any]) -> list[Series]:
    """Median accuracy in percent against median CPU seconds of every budget, one series a method."""
    series = []
    for colour, method in enumerate(("fenchel", "adam mapped", "adam raw")):
        points = [(median_iqr(p["cpu"])[0], 100 * median_iqr(p["accuracy"])[0]) for p in curves[method]]
        series.append(Series(method, [x for x, _ in points], [y for _, y in points], colour))
    return series


def loss_series(entry: Mapping[str, Any]) -> list[Series]:
    """Mean validation loss at the ends of the periods, one series a variant of a case."""
    series = []
    for colour, (name, label) in enumerate(VARIANTS.items()):
        curve = entry["variants"][name]["mean_curve"]
        found = [(100 * (k + 1) / len(curve), y) for k, y in enumerate(curve) if y is not None]
        series.append(Series(label, [x for x, _ in found], [y for _, y in found], colour))
    return series


def write(name: str, series: Sequence[Series], x: Axis, y: Axis) -> None:
    """One picture of the method pages."""
    path = ROOT / "docs" / "methods" / f"{name}.svg"
    write_atomically(path, standalone(series, x, y).encode())
    print(path.relative_to(ROOT))


def main() -> None:
    """Write the pictures."""
    records = [json.loads((RESULTS / f"{name}.json").read_text()) for name in RECORDS]
    rows = [row for record in records for row in mnist_rows(record)]
    for name, axis in PICTURES.items():
        write(name, accuracy_series(rows, axis.label), axis, Axis("MNIST test accuracy %"))
    found = json.loads((RESULTS / "fenchel_mnist.json").read_text())["results"]
    for name, part in found.items():
        axes = Axis("CPU s", log=True), Axis(f"{name} test accuracy %")
        write(f"fenchel_{name}", budget_series(part["curves"]), *axes)
    cases = json.loads((RESULTS / "weight_sampling.json").read_text())["cases"]
    for name, case in CURVES.items():
        for entry in cases:
            if entry["name"] == case:
                write(
                    name, loss_series(entry), Axis("share of the steps %"), Axis("validation loss", log=True)
                )


if __name__ == "__main__":
    main()
