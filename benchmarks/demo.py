"""The demo of the README, repeated with pinned threads: ``liftopt compare digits``, table and picture.

Writes the record ``demo.json``, the table between the markers of README.md and the picture docs/demo.svg.
"""

from common import ROOT, parse_arguments, write_block, write_record

from liftopt.compare import compare
from liftopt.comparison import HEADINGS, Comparison, format_row
from liftopt.network import write_atomically
from liftopt.report import score_axes, score_series
from liftopt.svg import standalone


def readme_section(comparison: Comparison) -> str:
    """Table, picture and summary in Markdown."""
    rows = [HEADINGS, ["---", *["--:"] * (len(HEADINGS) - 1)]]
    rows += [format_row(row, comparison) for row in comparison.rows]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    s = comparison.settings
    facts = (
        f"`liftopt compare {comparison.data}`: {s['n_train']:,} training and {s['n_test']:,} test rows, "
        f"{s['hidden_layer_sizes'][0]} hidden units, {s['repeats']} repeats, one thread."
    )
    picture = "![Test accuracy against fit time](docs/demo.svg)"
    return "\n\n".join([facts, table, " ".join(comparison.summary), picture])


def main() -> None:
    """Compare, then write the record and what the README shows."""
    quick = parse_arguments(__doc__).quick
    comparison = compare("iris" if quick else "digits", repeats=1 if quick else 3)
    print(comparison)
    payload = {
        "seeds": list(range(comparison.settings["repeats"])),
        "table": {
            "title": f"`liftopt compare {comparison.data}`",
            "columns": HEADINGS,
            "rows": [format_row(row, comparison) for row in comparison.rows],
            "notes": " ".join(comparison.summary),
        },
        "comparison": comparison.to_dict(),
    }
    write_record("demo", payload, quick=quick)
    if quick:
        return
    write_block(ROOT / "README.md", "demo", readme_section(comparison))
    write_atomically(
        ROOT / "docs" / "demo.svg", standalone(score_series(comparison), *score_axes(comparison)).encode()
    )


if __name__ == "__main__":
    main()
