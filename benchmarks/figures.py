"""Draw the pictures of the method pages from the records, at present those of ``docs/methods/ternary.md``.

Test accuracy on MNIST against bytes and against CPU time, one mark a network, one series a method. Rounding
alone would flatten the rest and is left to the tables. Straight-through networks are ternary too: they are
drawn at the bytes of the search's network of the same shape, though the records saved them as floats.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from common import RESULTS, ROOT

from liftopt.network import write_atomically
from liftopt.svg import Axis, Series, standalone

RECORDS = ("ternary_mnist", "ternary_report")
SEARCH, THROUGH = "ternary search", "straight-through"
METHODS = (SEARCH, THROUGH, "float start (manifold)", "float back-propagation")
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


def main() -> None:
    """Write the pictures."""
    records = [json.loads((RESULTS / f"{name}.json").read_text()) for name in RECORDS]
    rows = [row for record in records for row in mnist_rows(record)]
    for name, axis in PICTURES.items():
        path = ROOT / "docs" / "methods" / f"{name}.svg"
        picture = standalone(accuracy_series(rows, axis.label), axis, Axis("MNIST test accuracy %"))
        write_atomically(path, picture.encode())
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
