"""Exported files: their size, the largest difference to the network, and the time onnxruntime takes.

A 784-300-10 network in float32 and its ternary version in both packings, and LeNet-5 with random weights; one
batch of 256 rows, one thread, medians of 30 calls, CPU time.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import measure, parse_arguments, write_record

from liftopt import AvgPool2d, Conv2d, Dense, FiniteArray, Flatten, Network, get_activation
from liftopt.export import export_torch
from liftopt.packing import Packing

TERNARY = np.array([-1.0, 0.0, 1.0], dtype=np.float32)
ROWS = 256


def dense_network(rng: Any, packing: Packing | None) -> Network:
    """784-300-10: float weights, or packed ternary ones."""
    layers = []
    for fan_in, fan_out, kind in ((784, 300, "relu"), (300, 10, "softmax")):
        bias = rng.normal(size=fan_out).astype(np.float32)
        if packing is None:
            stored = rng.normal(scale=fan_in**-0.5, size=(fan_in, fan_out)).astype(np.float32)
        else:
            scale = rng.uniform(0.5, 1.5, fan_out).astype(np.float32) * fan_in**-0.5
            codes = rng.integers(0, 3, (fan_out, fan_in))
            stored = FiniteArray.from_codes(codes, TERNARY, scale.astype(np.float32), packing=packing)
        layers.append(Dense(stored, bias, get_activation(kind)))
    return Network(layers)


def lenet(rng: Any) -> Network:
    """LeNet-5 on 28 x 28 images."""

    def normal(*shape: int) -> Any:
        return rng.normal(scale=np.prod(shape[1:]) ** -0.5, size=shape).astype(np.float32)

    tanh, softmax = get_activation("tanh"), get_activation("softmax")
    return Network(
        [
            Conv2d(normal(6, 1, 5, 5), normal(6), tanh, padding=2), AvgPool2d(2),
            Conv2d(normal(16, 6, 5, 5), normal(16), tanh), AvgPool2d(2), Flatten(),
            Dense(normal(400, 120), normal(120), tanh), Dense(normal(120, 84), normal(84), tanh),
            Dense(normal(84, 10), normal(10), softmax),
        ],
        (1, 28, 28),
    )  # fmt: skip


def examine(network: Network, folder: Path, calls: int) -> dict[str, float]:
    """Sizes, difference and milliseconds of one network."""
    import onnxruntime

    paths = {kind: folder / f"network.{kind}" for kind in ("safetensors", "onnx", "pt")}
    network.save(paths["safetensors"])
    network.to_onnx(paths["onnx"])
    export_torch(network, paths["pt"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(paths["onnx"], options, providers=["CPUExecutionProvider"])
    rows = np.random.default_rng(1).random((ROWS, *network.input_shape), dtype=np.float32)
    found = session.run(None, {"input": rows})[0]
    seconds = {
        "onnxruntime": [measure(lambda: session.run(None, {"input": rows})).cpu for _ in range(calls)],
        "liftopt": [measure(lambda: network(rows)).cpu for _ in range(calls)],
    }
    return {
        **{kind: path.stat().st_size for kind, path in paths.items()},
        "difference": float(np.abs(found - network(rows)).max()),
        **{f"{name}_ms": 1e3 * median(values) for name, values in seconds.items()},
    }


def main() -> None:
    """Examine and record."""
    quick = parse_arguments(__doc__).quick
    rng = np.random.default_rng(0)
    networks = {
        "784-300-10, float32": dense_network(rng, None),
        "784-300-10, ternary, 2 bits": dense_network(rng, "bits"),
        "784-300-10, ternary, 1.6 bits": dense_network(rng, "digits"),
        "LeNet-5, float32": lenet(rng),
    }
    with tempfile.TemporaryDirectory() as folder:
        results = {name: examine(net, Path(folder), 3 if quick else 30) for name, net in networks.items()}
    columns = ["safetensors", "onnx", "pt", "difference", "onnxruntime_ms", "liftopt_ms"]
    payload = {
        "seeds": [0],
        "results": results,
        "table": {
            "title": "Exported files",
            "columns": ["network", "safetensors, bytes", "ONNX, bytes", "torch, bytes", "largest difference",
                        "onnxruntime, ms a batch", "liftopt, ms a batch"],
            "rows": [[name, *(result[key] for key in columns)] for name, result in results.items()],
            "notes": f"Random weights; batches of {ROWS} rows, CPU time. Torch has no packed storage.",
        },
    }  # fmt: skip
    write_record("export_files", payload, quick=quick)


if __name__ == "__main__":
    main()
