"""Parameters and buffers of a torch module: named and checked, exchanged in place, BatchNorm formed anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def trainable(torch: Any, model: Any) -> tuple[list[str], list[Any]]:
    """Names and trainable parameters, tied ones once."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("the model has no trainable parameter: all are frozen, or there are none")
    places: dict[int, str] = {}
    for name, parameter in named:
        if isinstance(parameter, torch.nn.parameter.UninitializedParameter):
            raise ValueError(f"parameter {name} has no shape yet: run one forward pass first")
        other = places.setdefault(parameter.data_ptr(), name) if parameter.data_ptr() else name
        if other != name:
            raise ValueError(
                f"parameters {other} and {name} share their memory but are two objects: tie them by using "
                "one Parameter in both places"
            )
    return [name for name, _ in named], [parameter for _, parameter in named]


def signature(names: Sequence[str], parameters: Sequence[Any]) -> list[tuple[str, tuple[int, ...], str]]:
    """Names, shapes and dtypes."""
    return [(name, tuple(p.shape), str(p.dtype)) for name, p in zip(names, parameters, strict=True)]


def check_signature(who: str, found: Sequence[Any], known: Sequence[Any]) -> None:
    """Names, shapes and dtypes agree, or the first difference is named."""
    for index in range(max(len(found), len(known))):
        theirs = _as_tuples(found[index]) if index < len(found) else None
        ours = tuple(known[index]) if index < len(known) else None
        if theirs != ours:
            raise ValueError(
                f"{who} has {_describe(theirs)} where this sampler averages {_describe(ours)}: "
                "one sampler serves one architecture"
            )


def _as_tuples(entry: Sequence[Any]) -> tuple[Any, ...]:
    """``entry`` as it was before a file turned its tuples into lists."""
    return tuple(tuple(part) if isinstance(part, list) else part for part in entry)


def _describe(entry: tuple[Any, ...] | None) -> str:
    return "no parameter" if entry is None else f"{entry[0]} of shape {tuple(entry[1])}, {entry[2]}"


def exchange(parameters: Sequence[Any], values: Sequence[Any]) -> None:
    """Point the parameters at other memory; optimisers keep hold of the parameters themselves."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.data = value


def batch_norms(torch: Any, model: Any) -> list[Any]:
    """Modules of the model that keep batch statistics."""
    kind = torch.nn.modules.batchnorm._BatchNorm
    return [m for m in model.modules() if isinstance(m, kind) and m.running_mean is not None]


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Context with the model in evaluation mode; the training flags return."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def refreshed(torch: Any, model: Any, norms: Sequence[Any], batches: Iterable[Any]) -> Iterator[None]:
    """Context with BatchNorm statistics of the given batches; the former ones return."""
    kept = [(n, n.momentum, {k: v.clone() for k, v in n.named_buffers(recurse=False)}) for n in norms]
    try:
        with evaluating(model):
            _form_statistics(torch, model, norms, batches)
        yield
    finally:
        for norm, momentum, buffers in kept:
            norm.momentum = momentum
            for name, value in buffers.items():
                getattr(norm, name).copy_(value)


def _form_statistics(torch: Any, model: Any, norms: Sequence[Any], batches: Iterable[Any]) -> None:
    """Cumulative statistics over the batches, if there are any; all other layers evaluate."""
    for index, batch in enumerate(batches):
        for norm in norms if index == 0 else ():
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            model(batch)
