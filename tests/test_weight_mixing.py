"""Coefficients of stored weights: exact for linear models, never worse on the held-out rows otherwise."""

import numpy as np
import pytest
import torch
from torch import nn

from liftopt import PeriodicWeightSampler, mix_weights
from liftopt.solvers import solve_simplex_cross_entropy, solve_simplex_least_squares


def rows(n=200, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return x, (x[:, :classes] + noise).argmax(1), x @ torch.ones(4, 2, dtype=torch.float64) + noise[:, :2]


def snapshots(model, k, scale, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            name: p.detach() + scale * torch.randn(p.shape, generator=generator, dtype=p.dtype)
            for name, p in model.named_parameters()
        }
        for _ in range(k)
    ]


def outputs(model, weights, x):
    with torch.no_grad():
        return torch.func.functional_call(model, weights, (x,)).numpy()


@pytest.mark.parametrize("task", ["classes", "targets"])
def test_linear_models_are_mixed_to_the_global_optimum(task):
    x, codes, targets = rows()
    model = nn.Linear(4, 3 if task == "classes" else 2, dtype=torch.float64)
    stored = snapshots(model, 6, 1.0)
    found = mix_weights(model, stored, x, codes if task == "classes" else targets, rho=0.01)
    Z = np.stack([outputs(model, weights, x) for weights in stored])
    if task == "classes":
        best = solve_simplex_cross_entropy(Z, np.eye(3)[codes.numpy()], rho=0.01)
    else:
        best = solve_simplex_least_squares(Z, targets.numpy(), rho=0.01)
    np.testing.assert_allclose(found.solution, best.x, atol=1e-5)
    assert found.gap <= 1e-8
    assert found.n_iter <= 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("task", ["classes", "targets"])
def test_never_worse_than_uniform_or_single_on_the_held_out_rows(task, seed):
    x, codes, targets = rows(seed=seed)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3 if task == "classes" else 2)).double()
    stored = snapshots(model, 7, 0.5, seed)
    found = mix_weights(model, stored, x, codes if task == "classes" else targets, max_iter=100)
    reached = found.uniform_loss - found.gain
    assert reached <= min(found.uniform_loss, found.single_loss) + 1e-12
    assert (found.kept == "uniform") == (found.gain <= found.gain_error)
    np.testing.assert_array_equal(
        found.coefficients, found.solution if found.kept == "solution" else np.full(7, 1 / 7)
    )
    assert found.gap <= 1e-6 * max(1.0, found.uniform_loss)


def test_equal_snapshots_keep_the_uniform_mean():
    x, codes, _ = rows()
    model = nn.Linear(4, 3, dtype=torch.float64)
    found = mix_weights(model, snapshots(model, 1, 0.3) * 4, x, codes)
    assert found.kept == "uniform"
    np.testing.assert_array_equal(found.coefficients, 0.25)
    assert found.gain == pytest.approx(0.0, abs=1e-12)


def test_the_model_stays_as_it_was():
    x, codes, _ = rows()
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mix_weights(model, snapshots(model, 3, 0.1), x, codes)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_convolutions_and_long_inputs_are_mixed():
    model = nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Linear(3, 3)
    ).double()
    x, codes, _ = rows(n=2500)
    found = mix_weights(model, snapshots(model, 4, 0.3), x, codes)
    assert found.loss <= found.uniform_loss


def test_tied_and_frozen_parameters_are_mixed():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3)).double()
    model[2].weight = model[0].weight
    model[3].requires_grad_(False)
    x, codes, _ = rows()
    sampler = PeriodicWeightSampler(model, period=1, window=3, reinsert=False)
    for weights in snapshots(model, 3, 0.5):
        with torch.no_grad():
            for name, value in weights.items():
                if not name.startswith("3"):
                    model.get_parameter(name).copy_(value)
        sampler.step()
    found = sampler.combine(x, codes)
    with sampler.averaged(), torch.no_grad():
        assert model[2].weight is model[0].weight
        assert nn.functional.cross_entropy(model(x), codes).item() == pytest.approx(found.loss, rel=1e-12)


def test_independent_errors_are_weighed_by_their_precision():
    """Weights around the truth with error power s^2: coefficients near 1 / s^2."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 200, generator=generator, dtype=torch.float64)
    model = nn.Linear(200, 1, bias=False, dtype=torch.float64)
    truth = torch.randn(1, 200, generator=generator, dtype=torch.float64)
    scales = np.array([0.5, 1.0, 2.0])
    draws = [torch.randn(1, 200, generator=generator, dtype=torch.float64) for _ in scales]
    stored = [{"weight": truth + s * draw} for s, draw in zip(scales, draws, strict=True)]
    found = mix_weights(model, stored, x, x @ truth.T)
    np.testing.assert_allclose(found.solution, scales**-2 / np.sum(scales**-2.0), atol=0.06)


def test_the_sampler_publishes_the_mixture_and_can_put_it_back():
    x, codes, _ = rows()
    model = nn.Linear(4, 3, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    sampler = PeriodicWeightSampler(model, period=2, window=5, reinsert=False)
    for start in range(12):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[start::12]), codes[start::12]).backward()
        optimizer.step()
        sampler.step()
    means = sampler.period_means
    found = sampler.combine(x, codes)
    mixed = sum(c * mean["weight"] for c, mean in zip(found.coefficients, means, strict=True))
    torch.testing.assert_close(sampler.published["weight"], mixed)
    sampler.put_back()
    torch.testing.assert_close(model.weight.detach(), mixed)
    with torch.no_grad():
        assert float(nn.functional.cross_entropy(model(x), codes)) == pytest.approx(found.loss)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stored": []}, "there are no weights to mix"),
        ({"stored": [{"weight": torch.zeros(2, 2)}]}, "weights 'weight' of a snapshot do not fit"),
        ({"stored": [{"other": torch.zeros(2, 2)}]}, "weights 'other' of a snapshot do not fit"),
        ({"targets": torch.zeros(3)}, "targets must be class indices"),
        ({"rho": -1.0}, "rho must be"),
    ],
)
def test_bad_input_is_named(change, message):
    x, codes, _ = rows()
    model = nn.Linear(4, 3, dtype=torch.float64)
    given = {"stored": snapshots(model, 2, 0.1), "targets": codes} | change
    stored, targets = given.pop("stored"), given.pop("targets")
    with pytest.raises(ValueError, match=message):
        mix_weights(model, stored, x, targets, **given)
