import re
from html.parser import HTMLParser
from typing import Any

import pytest

from liftopt.comparison import Comparison, Run
from liftopt.report import render

VOID = {"meta"}


class Page(HTMLParser):
    """Checks nesting and collects tags, attributes and text."""

    def __init__(self):
        super().__init__()
        self.stack, self.tags, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(html):
    page = Page()
    page.feed(html)
    page.close()
    assert not page.stack
    return page


def run(method, **changes):
    history = [
        {"iteration": k, "cpu": 0.1 * (k + 1), "objective": 2.0**-k, "validation_score": 0.5 + k / 10}
        | ({"stationarity": 10.0**-k} if method == "manifold" else {})
        for k in range(4)
    ]
    return Run(method, 0, 0.9, **{"wall": 1.0, "cpu": 0.5, "history": history, **changes})


def comparison(**changes):
    fields: dict[str, Any] = {
        "data": "toy",
        "task": "classification",
        "methods": ("manifold", "adam"),
        "baselines": ("adam",),
        "runs": (
            run("manifold"),
            run("adam", validation_score=0.8, parameters={"rate": 0.1}, search_cpu=2.0),
        ),
        "skipped": {},
        "failed": {},
        "interrupted": False,
        "settings": {
            "hidden_layer_sizes": (300,),
            "repeats": 1,
            "validation_share": 0.2,
            "grids": {"adam": [{"rate": 0.1}]},
            "n_train": 1437,
            "n_test": 360,
            "n_features": 64,
            "n_classes": 10,
        },
        "environment": {
            "python": "3.11",
            "system": "Linux",
            "cores": 2,
            "threads": 1,
            "versions": {"numpy": "2"},
        },
    }
    return Comparison(**(fields | changes))


def test_page_is_well_formed_and_shows_all_figures():
    page = parse(render(comparison()))
    assert page.tags.count("figure") == 4
    text = " ".join(page.text)
    for piece in ("manifold", "adam", "90.00 %", "1,437 training", "How it was measured", "rate = 0.1"):
        assert piece in text


def test_page_needs_no_network_and_runs_no_code():
    html = render(comparison())
    page = parse(html)
    assert not {"script", "link", "iframe", "img", "object", "base"} & set(page.tags)
    assert not re.search(r"https?:|//\w|@import|url\(", html)
    assert not any(
        name in {"src", "href", "srcset"} or name.startswith("on") for _, name, _ in page.attributes
    )


def test_page_adapts_to_phones_and_dark_mode():
    html = render(comparison())
    assert 'name="viewport"' in html
    assert "prefers-color-scheme: dark" in html
    assert 'name="color-scheme" content="light dark"' in html


def test_everything_from_the_data_is_escaped():
    evil = "<script>alert(1)</script>&\"'"
    html = render(
        comparison(
            data=evil,
            methods=(evil, "adam"),
            runs=(run(evil, notes=(evil,), parameters={evil: evil}), run("adam", validation_score=0.5)),
            skipped={evil: evil},
            failed={"x": evil},
        )
    )
    page = parse(html)
    assert "script" not in page.tags
    assert any(evil in text for text in page.text)


def test_an_interrupted_comparison_says_so():
    assert "Finished runs: 2 of 2" in render(comparison(interrupted=True))
    assert "No run was finished" in render(comparison(runs=(), interrupted=True))


def test_figures_without_data_are_left_out():
    bare = (run("manifold", history=()), run("adam", history=(), validation_score=0.5))
    assert parse(render(comparison(runs=bare))).tags.count("figure") == 1


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_scores_are_shown_in_the_unit_of_the_task(task):
    html = render(comparison(task=task))
    assert ("90.00 %" in html) == (task == "classification")
    assert ("0.9000" in html) == (task == "regression")


def test_report_is_written_atomically_and_wholly(tmp_path):
    path = tmp_path / "report.html"
    comparison().save_html(path)
    assert path.read_text().endswith("</html>\n")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
