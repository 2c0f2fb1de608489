"""
Out of the package: ONNX, torch, small files
============================================

Train a network and its ternary version, write both as ONNX models, run them without liftopt, hand one to
torch and take it back, and compare the sizes of the files.
"""

# %%
# A network for the digits, and one whose weights are -1, 0 or +1 times a scale of their unit.

import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from liftopt import ManifoldClassifier, Network, TernaryClassifier
from liftopt.export import export_torch, load_torch
from liftopt.plot import NetworkDisplay

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0, stratify=y)
model = ManifoldClassifier((100,), random_state=0).fit(X_train, y_train)
ternary = TernaryClassifier(init=model.network_, random_state=0).fit(X_train, y_train)
print(f"float {model.score(X_test, y_test):.4f}, ternary {ternary.score(X_test, y_test):.4f}")

# %%
# What the ternary network sees: the weights of its hidden units, white where a pixel has none.

NetworkDisplay.from_estimator(ternary, image_shape=(8, 8))
plt.show()

# %%
# ONNX. The file is all that a service needs: onnxruntime computes the class probabilities from the images,
# and the labels are in the metadata.

network = model.network_
labelled = Network(network.layers, metadata={"classes": model.classes_.tolist()})
folder = Path(tempfile.mkdtemp())
labelled.to_onnx(folder / "float.onnx")

session = onnxruntime.InferenceSession(folder / "float.onnx", providers=["CPUExecutionProvider"])
(probabilities,) = session.run(None, {"input": X_test.astype(np.float32)})
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
print("first labels:", [classes[k] for k in probabilities.argmax(axis=1)[:10]])
print(f"largest difference to the network: {np.abs(probabilities - network(X_test)).max():.1e}")

# %%
# Packed weights stay packed: four of them a byte, unpacked by standard operators when the model is loaded.

ternary.network_.to_onnx(folder / "ternary.onnx")
session = onnxruntime.InferenceSession(folder / "ternary.onnx", providers=["CPUExecutionProvider"])
(probabilities,) = session.run(None, {"input": X_test.astype(np.float32)})
print(f"largest difference to the network: {np.abs(probabilities - ternary.network_(X_test)).max():.1e}")

# %%
# Torch: a module with equal weights, to be trained on or put into a larger one, and back. As a file it is a
# checkpoint of plain data: loading executes nothing.

module = network.to_torch()
print(module)
export_torch(network, folder / "float.pt")
again = Network.from_torch(load_torch(folder / "float.pt"))
same = [np.array_equal(a.weight, b.weight) for a, b in zip(again.layers, network.layers, strict=True)]
print("weights back from torch are the same:", all(same))
with torch.inference_mode():
    print("torch computes the same:", np.allclose(module(torch.from_numpy(X_test)), network(X_test)))

# %%
# The files, with liftopt's own format beside them. Weights trained in double precision are saved so; a cast
# to float32 halves the file, as ONNX does by itself.

network.save(folder / "float.safetensors")
network.astype(np.float32).save(folder / "float32.safetensors")
ternary.network_.save(folder / "ternary.safetensors")
files = sorted(folder.iterdir(), key=lambda path: path.stat().st_size)
figure, ax = plt.subplots(figsize=(7, 3), layout="constrained")
bars = ax.barh([path.name for path in files], [path.stat().st_size / 1024 for path in files])
ax.bar_label(bars, fmt=" %.1f KiB")
ax.set(xlabel="KiB", xlim=(0, 1.2 * files[-1].stat().st_size / 1024))
plt.show()
