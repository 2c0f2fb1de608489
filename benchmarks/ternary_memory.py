"""Memory and single-row speed of packed weights: 784-300-10, ternary, float32 scales.

Claims: the saved file is at least 28 times smaller than the float64 parameters and 14 times smaller than
the float32 ones, scales, biases and header included; up to four rows are multiplied faster from the codes
than after unpacking.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from common import parse_arguments, write_record  # isort: skip

import itertools

import numpy as np
from ternary_mnist import file_bytes

from liftopt import Dense, FiniteArray, Network
from liftopt.packing import Packing

SHAPE = (784, 300, 10)
SEED = 0


def packed(rng: np.random.Generator, fan_in: int, units: int, packing: Packing) -> FiniteArray:
    """Random ternary codes."""
    values = np.array([-1, 0, 1], dtype=np.float32)
    scale = rng.random(units, dtype=np.float32)
    return FiniteArray.from_codes(rng.integers(0, 3, (units, fan_in)), values, scale, packing=packing)


def microseconds(function: Callable[[], Any], repeats: int) -> float:
    """CPU time of one call, the best of five batches."""
    function()
    batches = []
    for _ in range(5):
        start = time.process_time()
        for _ in range(repeats):
            function()
        batches.append((time.process_time() - start) / repeats)
    return 1e6 * min(batches)


def main() -> None:
    """Pack, save, time, record."""
    quick = parse_arguments(__doc__).quick
    rng = np.random.default_rng(SEED)
    parameters = sum((a + 1) * b for a, b in itertools.pairwise(SHAPE))
    sizes, speeds = [], []
    for packing in ("bits", "digits"):
        weights = [packed(rng, a, b, packing) for a, b in itertools.pairwise(SHAPE)]
        layers = [Dense(weight, np.zeros(weight.scale.size, np.float32)) for weight in weights]
        network = Network(layers)
        file = file_bytes(network)
        sizes.append([packing, network.nbytes, file, 8 * parameters / file, 4 * parameters / file])
        for rows in (1, 4, 64):
            X = rng.standard_normal((rows, SHAPE[0]), dtype=np.float32)
            times = [
                microseconds(call, 10 if quick else 200)
                for call in (
                    lambda X=X, w=weights[0]: w.multiply(X),
                    lambda X=X, w=weights[0]: X @ w.dense().T,
                )
            ]
            speeds.append([packing, rows, *times])
    for row in [*sizes, *speeds]:
        print(*row)
    payload = {
        "seeds": [SEED],
        "table": [
            {
                "title": "Bytes of a packed 784-300-10 network",
                "columns": ["packing", "nbytes", "file bytes", "below float64", "below float32"],
                "rows": sizes,
                "notes": "Float sizes count parameters only; the file counts its header too.",
            },
            {
                "title": "Product with a packed 784-300 layer, microseconds",
                "columns": ["packing", "rows", "as predicted", "unpack, then BLAS"],
                "rows": speeds,
                "notes": "Up to four rows are multiplied by look-up, more are unpacked.",
            },
        ],
    }
    write_record("ternary_memory", payload, quick=quick)


if __name__ == "__main__":
    main()
