"""Saved networks and the tables they belong to: what a network must remember to predict from a CSV file.

The facts travel in ``Network.metadata``: the task, the target's name, the class labels, and how each column
of the training table became features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from liftopt import __version__
from liftopt.data import Dataset
from liftopt.network import ModelFileError, Network
from liftopt.readers import Column, columns_from_json, columns_to_json, encode, read_csv


def with_data_facts(network: Network, data: Dataset, target: str | None, method: str) -> Network:
    """``network`` with the metadata that :func:`predict_table` needs."""
    classes = np.unique(data.y).tolist() if data.task == "classification" else None
    facts = {
        "task": data.task,
        "target": target or "target",
        "classes": classes,
        "columns": columns_to_json(data.columns or [Column(name) for name in data.feature_names]),
        "data": data.name,
        "method": method,
        "liftopt": __version__,
    }
    return Network(network.layers, network.input_shape, {**network.metadata, **facts})


def predict_table(network: Network, path: Path) -> tuple[Any, list[str]]:
    """Predictions for the rows of a CSV file.

    Parameters
    ----------
    network : Network
        With the metadata of :func:`with_data_facts`.
    path : Path
        CSV file; columns are matched by name and may stand in any order.

    Returns
    -------
    predictions : pandas.DataFrame
        One column named like the target, and for classification the ``probability`` of that class.
    ignored : list of str
        Columns of the file that the network does not use.

    Raises
    ------
    ModelFileError
        If the network does not carry the facts about its training table.
    ValueError
        If a column is missing or holds what the network was not trained for; the message names it.
    """
    import pandas as pd

    facts = network.metadata
    columns = _columns(facts)
    frame = read_csv(path)
    out = network(encode(frame, columns, path))
    used = {column.name for column in columns} | {facts["target"]}
    ignored = [str(name) for name in frame.columns if name not in used]
    if facts["task"] == "regression":
        names = (
            [facts["target"]] if out.shape[1] == 1 else [f"{facts['target']}{k}" for k in range(out.shape[1])]
        )
        return pd.DataFrame(out, columns=names), ignored
    winners = out.argmax(axis=1)
    labels = np.asarray(facts["classes"])[winners]
    return pd.DataFrame({facts["target"]: labels, "probability": out.max(axis=1)}), ignored


def _columns(facts: Mapping[str, Any]) -> tuple[Column, ...]:
    missing = {"task", "target", "classes", "columns"} - set(facts)
    if missing:
        raise ModelFileError(
            "the network does not know the columns it was trained on: save it with 'liftopt fit', or apply "
            "it in Python"
        )
    return columns_from_json(facts["columns"])
