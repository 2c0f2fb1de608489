"""Write the decision table of ``docs/choosing.md``: for each need a method, and what its records say.

The first two cells of a row are judgement; the rest is read from the records, losses included.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from common import RESULTS, ROOT, median_iqr, write_block
from losses import LEVEL, MLP, Pair, geometric_mean, grouped, read_pairs

TARGET = ROOT / "docs" / "choosing.md"


def load(claim: str) -> Any:
    return json.loads((RESULTS / f"{claim}.json").read_text())


def against(ours: str, rival: str, claim: str) -> str:
    """How one of our methods fared against a rival over the sets of a record."""
    pairs = grouped(read_pairs())[ours, rival, claim]
    return f"against {rival} on {len(pairs)} sets: {verdict(pairs)}"


def verdict(pairs: Sequence[Pair]) -> str:
    """Sets on which we are level, the worst of the others, and the ratio of the times."""
    level = sum(pair.behind <= LEVEL for pair in pairs)
    worst = max(pairs, key=lambda pair: pair.behind)
    loss = f", at worst {worst.behind:.1f} points behind ({worst.data})" if worst.behind > LEVEL else ""
    time = geometric_mean([pair.time for pair in pairs])
    return f"ahead or level on {level}{loss}; {time:.2g} times its CPU time"


def quick_start() -> str:
    return against("manifold", "tuned Adam", "manifold_tabular") + ", search not counted"


def accuracy() -> str:
    record = load("fenchel_tabular")
    ratios = [
        median_iqr(run["fenchel"]["cpu"])[0] / (run["search_cpu"] + median_iqr(run["adam"]["cpu"])[0])
        for run in record["results"].values()
    ]
    found = against("fenchel", "tuned Adam", "fenchel_tabular")
    return f"{found}, {geometric_mean(ratios):.2g} times it with the search"


def images() -> str:
    parts = []
    for name, found in load("fenchel_mnist")["results"].items():
        best = {
            side: max((median_iqr(point["accuracy"])[0], median_iqr(point["cpu"])[0]) for point in points)
            for side, points in found["curves"].items()
            if side in ("fenchel", "adam mapped", "adam raw")
        }
        shown = (
            f"{label} {100 * best[side][0]:.2f} % ({best[side][1]:.1f} s)"
            for side, label in (
                *(("fenchel", "`fenchel`"), ("adam mapped", "Adam on our input map")),
                ("adam raw", "Adam on raw pixels"),
            )
        )
        parts.append(f"{name}: {', '.join(shown)}")
    return "; ".join(parts)


def convolutions() -> str:
    points = load("fenchel_depth")["results"]["LeNet-5"]
    best = {
        side: max(
            (median_iqr(p["accuracy"])[0], median_iqr(p["cpu"])[0]) for p in points if p["method"] == side
        )
        for side in ("fenchel", "adam")
    }
    (ours, seconds), (theirs, time) = best["fenchel"], best["adam"]
    return (
        f"LeNet-5 on MNIST: {100 * ours:.2f} % in {seconds:.0f} s, Adam {100 * theirs:.2f} % in {time:.0f} s"
    )


def few_rows() -> str:
    rows = load("fenchel_monotone")["table"][1]["rows"]
    leads = ", ".join(f"{name} {lead:+.1f}" for name, _, _, _, lead in rows)
    sizes = [row[1] for row in rows]
    return f'in `mode="monotone"`, points ahead of tuned Adam with {min(sizes)} to {max(sizes)} rows: {leads}'


def small() -> str:
    table = load("ternary_report")["table"]
    found: dict[str, dict[str, Sequence[Any]]] = {}
    for task, method, *values in table["rows"]:
        found.setdefault(task, {})[method] = values
    parts = []
    for task, methods in found.items():
        if "ternary search" in methods:
            own, whole = methods["ternary search"], methods["float back-propagation"]
            parts.append(
                f"{task}: {own[3] / 1000:.1f} kB instead of {whole[3] / 1000:.0f}, "
                f"{whole[2] - own[2]:+.2f} points, {own[4] / whole[4]:.1f} times the CPU time"
            )
    return "against float back-propagation, " + "; ".join(parts)


def spline() -> str:
    earth = load("spline_speed")["table"][0]
    times = {row[0]: row[2] for row in earth["rows"]}
    return (
        against("spline", "boosted trees", "spline_accuracy")
        + f". {times['liftopt, min']} times faster than R's earth on Friedman's function"
    )


def hinging() -> str:
    return "; ".join(
        (
            against("hinging", MLP, "spline_accuracy"),
            against("hinging", "boosted trees", "spline_accuracy"),
        )
    )


def stream() -> str:
    table = load("out_of_memory")["table"]
    column = table["columns"].index
    row = [row for row in table["rows"] if row[0] == "manifold"][-1]  # that of most rows
    rows, size, seconds, memory = (row[column(name)] for name in ("rows", "GB", "CPU s", "MiB"))
    return f"{rows} rows, {size} GB: {float(seconds):.0f} CPU s, {memory} MiB of memory"


def refine() -> str:
    parts = []
    for found in load("refine_start")["results"]:
        ours = 100 * median_iqr(found["accuracy"]["refine"])[0]
        plain, noisy = (100 * median_iqr(found[key]["accuracy"])[0] for key in ("adam", "adam with noise"))
        seconds = sum(median_iqr(values)[0] for values in found["cpu"].values())
        parts.append(
            f"{found['data']}, {found['recipe']}: {ours:.2f} % in {seconds:.1f} s, Adam on the same map "
            f"{plain:.2f} % in {median_iqr(found['adam']['cpu'])[0]:.1f} s, {noisy:.2f} % with input noise"
        )
    return "; ".join(parts)


def published() -> str:
    parts = []
    for name, found in load("manifold_images")["sets"].items():
        scores = {row["name"]: median_iqr(row["accuracy"])[0] for row in found["all"]}
        cycle = next(score for row, score in scores.items() if row.startswith("published"))
        parts.append(f"{name}: {cycle:.1f} %, `manifold` {scores['manifold, default']:.1f} %")
    return "; ".join(parts)


def adam() -> str:
    pairs = [
        pair
        for claim in ("manifold_tabular", "fenchel_tabular")
        for pair in read_pairs()[claim]
        if pair.behind > 1.0
    ]
    sets = ", ".join(
        f"{p.data} by {p.behind:.1f} (`{p.ours}`)" for p in sorted(pairs, key=lambda p: -p.behind)
    )
    return f"more than a point ahead on {sets}"


ROWS = (
    ("a quick, good network with nothing to tune", "`manifold`", quick_start),
    ("the last points of accuracy without tuning", "`fenchel`", accuracy),
    ("images, and few passes over them", "`fenchel`", images),
    ("a small convolutional network", "`fenchel` from `init=`", convolutions),
    ("few rows", "`fenchel`, by itself monotone below 500 rows", few_rows),
    ("a file that must be small: 2 bits a weight", "`ternary`", small),
    ("a table, and the wish to read the model", "`spline`", spline),
    ("a table with oblique structure, and a shallow network", "`hinging`", hinging),
    ("more rows than fit in memory", "`manifold` on a [stream](distributed.md)", stream),
    ("a network that another method built, to be made better", "`refine`, or a recipe", refine),
    ("the published closed-form method itself", "`manifold_paper`", published),
    ("a reference, or plenty of time and data", "`adam`", adam),
)


def table() -> str:
    """The decision table in Markdown."""
    lines = ["| you have or want | take | measured |", "| --- | --- | --- |"]
    lines += [f"| {need} | {method} | {measured()} |" for need, method, measured in ROWS]
    return "\n".join(lines)


def main() -> None:
    """Write the table between the markers of the page."""
    write_block(TARGET, "choosing", table())


if __name__ == "__main__":
    main()
