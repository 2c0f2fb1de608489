"""Displays in the manner of scikit-learn's: ``from_...`` computes and draws, ``plot`` draws again elsewhere.

:class:`ConvergenceDisplay`   what a fit recorded, over iterations or seconds
:class:`NetworkDisplay`       the weights of a layer, packed ones in the colours of their value set, or where
                              its hinge units bend
:class:`ComparisonDisplay`    test scores against the time of the fit

Matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from liftopt.comparison import Comparison
from liftopt.layers import Conv2d, Dense
from liftopt.network import Network
from liftopt.packing import FiniteArray
from liftopt.report import score_axes, score_series
from liftopt.solvers.result import Record

Array = npt.NDArray[Any]
Time = Literal["iteration", "time", "cpu"]
Kind = Literal["weights", "hinges"]

_QUANTITIES = ("validation_score", "objective", "loss")
_X_LABELS: Mapping[Time, str] = {"iteration": "iteration", "time": "seconds", "cpu": "CPU seconds"}
_MOST_UNITS = 100
_SATURATED = 0.98  # share of the weights inside the scale of colours
_BENDING = ("relu", "leaky_relu", "elu")


class ConvergenceDisplay:
    """A recorded quantity over iterations or seconds.

    Parameters
    ----------
    x, y : sequence of float
        Points; NaN where a record lacks the quantity.
    x_label, y_label : str
        What they are.
    stages : mapping of str to float
        Where the stages of a recipe begin.

    Attributes
    ----------
    line_, ax_, figure_ : matplotlib artists
        Line, axes and figure of the last drawing.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from liftopt import ManifoldClassifier
    >>> from liftopt.plot import ConvergenceDisplay
    >>> model = ManifoldClassifier((8,), random_state=0).fit(*load_iris(return_X_y=True))
    >>> display = ConvergenceDisplay.from_estimator(model, quantity="loss")  # doctest: +SKIP
    """

    def __init__(
        self,
        x: Sequence[float],
        y: Sequence[float],
        *,
        x_label: str,
        y_label: str,
        stages: Mapping[str, float] | None = None,
    ) -> None:
        self.x, self.y, self.x_label, self.y_label = x, y, x_label, y_label
        self.stages = stages or {}

    @classmethod
    def from_estimator(cls, estimator: Any, **settings: Any) -> ConvergenceDisplay:
        """Draw the ``history_`` of a fitted ``estimator``; ``settings`` as for :meth:`from_history`.

        Raises
        ------
        ValueError
            If the estimator has no history: it is not fitted, or its method does not iterate.
        """
        history = getattr(estimator, "history_", None)
        if not history:
            raise ValueError(
                f"{type(estimator).__name__} has no history_: fit it first, with a method that iterates"
            )
        return cls.from_history(history, **{"label": type(estimator).__name__, **settings})

    @classmethod
    def from_history(
        cls,
        history: Sequence[Record],
        *,
        quantity: str | None = None,
        over: Time = "iteration",
        ax: Any = None,
        **line: Any,
    ) -> ConvergenceDisplay:
        """Draw a history: of an estimator, or of a block solver's :class:`~liftopt.solvers.Result`.

        Parameters
        ----------
        history : sequence of mapping
            Records.
        quantity : str, optional
            Key of the records; by default the first that is there of ``validation_score``, ``objective``
            and ``loss``.
        over : {"iteration", "time", "cpu"}
            Horizontal axis.
        ax : matplotlib axes, optional
            Where to draw; by default a new figure.
        **line
            Properties of the line, as for ``ax.plot``.

        Raises
        ------
        ValueError
            If no record has the quantity; the message lists those there are.
        """
        known = list(dict.fromkeys(key for record in history for key in record))
        quantity = quantity or next((name for name in _QUANTITIES if name in known), "objective")
        if quantity not in known or over not in known:
            missing = quantity if quantity not in known else over
            raise ValueError(f"no record has {missing!r}; there are {', '.join(known)}")
        stages: dict[str, float] = {}
        for record in history:
            if "stage" in record:
                stages.setdefault(record["stage"], float(record[over]))
        display = cls(
            [float(record.get(over, math.nan)) for record in history],
            [float(record.get(quantity, math.nan)) for record in history],
            x_label=_X_LABELS[over],
            y_label=quantity.replace("_", " "),
            stages=stages,
        )
        return display.plot(ax, **line)

    def plot(self, ax: Any = None, **line: Any) -> ConvergenceDisplay:
        """Draw on ``ax``, or on a new figure; ``line`` are properties of the line."""
        self.ax_ = _axes(ax)
        self.figure_ = self.ax_.figure
        (self.line_,) = self.ax_.plot(*self._points(), **line)
        for name, start in self.stages.items():
            self.ax_.axvline(start, color="grey", linewidth=0.8, linestyle=":")
            where = {"transform": self.ax_.get_xaxis_transform(), "rotation": 90, "va": "top", "ha": "right"}
            self.ax_.text(start, 0.98, f" {name}", color="grey", **where)
        self.ax_.set(xlabel=self.x_label, ylabel=self.y_label)
        if "label" in line:
            self.ax_.legend()
        return self

    def _points(self) -> tuple[Array, Array]:
        """Coordinates of the line: only recorded points, a gap where another stage begins."""
        x, y = np.asarray(self.x), np.asarray(self.y)
        x, y = x[np.isfinite(y)], y[np.isfinite(y)]
        starts = list(self.stages.values())[1:]
        cuts = np.searchsorted(x, starts)
        return np.insert(x, cuts, starts), np.insert(y, cuts, math.nan)


class NetworkDisplay:
    """Weights of a layer, or the places where its hinge units bend.

    Parameters
    ----------
    network : Network
        What is shown.
    kind : {"weights", "hinges"}
        ``"weights"``: the incoming weights of each unit as one picture where ``image_shape`` or a convolution
        gives one, else all as one matrix; packed weights without their scales, one colour a value.
        ``"hinges"``: for one or two inputs, the points or lines where the units of the first layer bend.
    layer : int
        Index among the Dense and Conv2d layers.
    image_shape : tuple of int, optional
        Height and width of the inputs of a Dense layer.

    Attributes
    ----------
    artists_ : list of matplotlib artists
        Images or lines.
    ax_, figure_ : matplotlib axes and figure
        Of the last drawing.
    """

    def __init__(
        self,
        network: Network,
        *,
        kind: Kind = "weights",
        layer: int = 0,
        image_shape: tuple[int, int] | None = None,
    ) -> None:
        self.network, self.kind, self.layer, self.image_shape = network, kind, layer, image_shape

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None, **settings: Any) -> NetworkDisplay:
        """Draw the ``network_`` of a fitted ``estimator`` on ``ax``; ``settings`` as for the class."""
        return cls.from_network(estimator.network_, ax=ax, **settings)

    @classmethod
    def from_network(cls, network: Network, *, ax: Any = None, **settings: Any) -> NetworkDisplay:
        """Draw ``network`` on ``ax`` or a new figure; ``settings`` as for the class.

        Raises
        ------
        ValueError
            If there is no such layer, its inputs do not have ``image_shape``, or hinges cannot be drawn.
        """
        return cls(network, **settings).plot(ax)

    def plot(self, ax: Any = None) -> NetworkDisplay:
        """Draw on ``ax``, or on a new figure."""
        if self.kind not in ("weights", "hinges"):
            raise ValueError(f"kind must be 'weights' or 'hinges', got {self.kind!r}")
        layers = [layer for layer in self.network.layers if isinstance(layer, (Dense, Conv2d))]
        if not 0 <= self.layer < len(layers):
            raise ValueError(f"layer must be below {len(layers)}, the number of Dense and Conv2d layers")
        shown = layers[self.layer]
        draw = self._draw_weights if self.kind == "weights" else self._draw_hinges
        self.artists_: list[Any] = []
        self.ax_ = _axes(ax)
        self.figure_ = self.ax_.figure
        draw(shown)
        return self

    def _draw_weights(self, layer: Dense | Conv2d) -> None:
        units = _units(layer)
        image = self._mosaic(units) if isinstance(layer, Conv2d) or self.image_shape else units
        values = layer.stored.values if isinstance(layer.stored, FiniteArray) else None
        if values is None:
            limit = float(np.nanquantile(np.abs(image), _SATURATED)) or 1.0
            shown = self.ax_.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
            self.figure_.colorbar(shown, ax=self.ax_)
        else:
            shown = self._imshow_values(image, values)
        self.artists_ = [shown]
        if isinstance(layer, Dense) and not self.image_shape:
            self.ax_.set(xlabel="input", ylabel="unit", aspect="auto")
        else:
            self.ax_.set_axis_off()
        self.ax_.set_title(str(layer), fontsize="medium")

    def _imshow_values(self, image: Array, values: Array) -> Any:
        """One colour for each element of a value set."""
        import matplotlib as mpl

        order = np.sort(values)
        codes = np.where(np.isnan(image), np.nan, np.searchsorted(order, image))
        colours = mpl.colormaps["RdBu_r"].resampled(order.size)
        shown = self.ax_.imshow(
            codes, cmap=colours, vmin=-0.5, vmax=order.size - 0.5, interpolation="nearest"
        )
        bar = self.figure_.colorbar(shown, ax=self.ax_, ticks=range(order.size))
        bar.set_ticklabels([f"{value:g}" for value in order])
        return shown

    def _mosaic(self, units: Array) -> Array:
        """Pictures of the first units side by side, NaN between them."""
        if units.ndim == 4:
            pictures = units.reshape(-1, *units.shape[2:])
        else:
            height, width = self.image_shape or (0, 0)
            if height * width != units.shape[1]:
                raise ValueError(f"the {units.shape[1]} inputs of the layer are no {height} x {width} image")
            pictures = units.reshape(-1, height, width)
        pictures = pictures[:_MOST_UNITS]
        height, width = pictures.shape[1:]
        columns = math.ceil(math.sqrt(len(pictures)))
        rows = -(-len(pictures) // columns)
        mosaic = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
        for index, picture in enumerate(pictures):
            top, left = index // columns * (height + 1), index % columns * (width + 1)
            mosaic[top : top + height, left : left + width] = picture
        return mosaic

    def _draw_hinges(self, layer: Dense | Conv2d) -> None:
        if self.network.input_shape not in ((1,), (2,)) or self.layer or not isinstance(layer, Dense):
            raise ValueError("hinges are drawn for the first layer of a network of one or two inputs")
        if layer.activation.name not in _BENDING:
            raise ValueError(f"units of {layer.activation} do not bend at a point")
        for weight, offset in zip(layer.weight.T, layer.bias, strict=True):
            if not weight.any():
                continue
            if weight.size == 1:
                self.artists_.append(
                    self.ax_.axvline(-offset / weight[0], color="C0", linewidth=0.8, alpha=0.6)
                )
            else:
                foot = -offset * weight / (weight @ weight)  # the point of the line next to the origin
                along = foot + np.array([-weight[1], weight[0]])
                line = self.ax_.axline(tuple(foot), tuple(along), color="C0", linewidth=0.8, alpha=0.6)
                self.artists_.append(line)
        self.ax_.set(xlabel="first input", ylabel="second input" if self.network.input_shape == (2,) else "")


class ComparisonDisplay:
    """Test scores of a comparison against the CPU seconds of the fits, one mark a run.

    Parameters
    ----------
    comparison : Comparison
        What :func:`liftopt.compare.compare` found.

    Attributes
    ----------
    artists_ : list of matplotlib artists
        Marks of each method.
    ax_, figure_ : matplotlib axes and figure
        Of the last drawing.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison

    @classmethod
    def from_comparison(cls, comparison: Comparison, *, ax: Any = None, **marks: Any) -> ComparisonDisplay:
        """Draw ``comparison`` on ``ax`` or a new figure; ``marks`` are properties as for ``ax.plot``.

        Raises
        ------
        ValueError
            If no run was finished.
        """
        return cls(comparison).plot(ax, **marks)

    def plot(self, ax: Any = None, **marks: Any) -> ComparisonDisplay:
        """Draw on ``ax``, or on a new figure; ``marks`` are properties as for ``ax.plot``."""
        if not self.comparison.runs:
            raise ValueError("the comparison has no finished run to draw")
        self.ax_ = _axes(ax)
        self.figure_ = self.ax_.figure
        self.artists_ = []
        for index, series in enumerate(score_series(self.comparison)):
            style = {"marker": "osD^vP*X"[index % 8], "linestyle": "", "label": series.label}
            self.artists_ += self.ax_.plot(series.x, series.y, **{**style, **marks})
        x, y = score_axes(self.comparison)
        self.ax_.set(xlabel=x.label, ylabel=y.label, title=self.comparison.data)
        if x.log:
            self.ax_.set_xscale("log")
        self.ax_.legend()
        return self


def _units(layer: Dense | Conv2d) -> Array:
    """Weights with the units first; of packed ones the values without their scales."""
    if isinstance(layer.stored, FiniteArray):
        unscaled: Array = layer.stored.values[layer.stored.codes()]
        return unscaled
    return layer.weight.T if isinstance(layer, Dense) else layer.weight


def _axes(ax: Any) -> Any:
    """``ax``, or the axes of a new figure."""
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError(
            "drawing needs matplotlib, which is not installed: pip install 'liftopt[plots]'"
        ) from None
    return plt.subplots(layout="constrained")[1]
