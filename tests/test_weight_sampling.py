"""Periodic weight sampling: equivalences with known averages, resuming bit for bit, and what it refuses."""

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from liftopt import PeriodicWeightSampler


def small_net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def batches(n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, 3, generator=generator), torch.randn(8, 2, generator=generator)) for _ in range(n)
    ]


def train(model, optimizer, data, sampler=None):
    """Plain loop; yields after every step."""
    for x, y in data:
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        if sampler is not None:
            sampler.step()
        yield


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def finish(run):
    for _ in run:
        pass


def assert_equal(first, second):
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def assert_close(first, second, tol=1e-6):
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def trajectory(n, rate=0.05):
    """Weights after every step of plain Adam."""
    model = small_net()
    return [weights(model) for _ in train(model, torch.optim.Adam(model.parameters(), rate), batches(n))]


def sampled(n, **options):
    """Model and sampler after n steps of Adam."""
    model = small_net()
    sampler = PeriodicWeightSampler(model, **options)
    finish(train(model, torch.optim.Adam(model.parameters(), 0.05), batches(n), sampler))
    return model, sampler


def mean(group):
    return [torch.stack(values).mean(0) for values in zip(*group, strict=True)]


@pytest.mark.parametrize("period", [1, 3, 7])
def test_sampling_the_last_weights_only_is_the_optimiser_itself(period):
    model, _ = sampled(50, period=period, every=period)
    assert_equal(weights(model), trajectory(50)[-1])


def test_half_way_back_from_the_last_of_five_is_lookahead():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    slow = weights(model)
    for index, _ in enumerate(train(model, optimizer, batches(20)), start=1):
        if index % 5 == 0:
            slow = [torch.lerp(old, p.detach(), 0.5) for old, p in zip(slow, model.parameters(), strict=True)]
            with torch.no_grad():
                for parameter, value in zip(model.parameters(), slow, strict=True):
                    parameter.copy_(value)
    ours = small_net()
    optimizer = torch.optim.SGD(ours.parameters(), 0.1, momentum=0.9)
    sampler = PeriodicWeightSampler(ours, period=5, every=5, reinsert=0.5)
    finish(train(ours, optimizer, batches(20), sampler))
    assert_equal(weights(ours), slow)


def test_one_long_period_is_torchs_average():
    model = small_net()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    average = AveragedModel(model)
    sampler = PeriodicWeightSampler(model, period=40, every=1, reinsert=False)
    for _ in train(model, optimizer, batches(40), sampler):
        average.update_parameters(model)
    assert_close(list(sampler.published.values()), weights(average.module), tol=3e-7)


def test_momentum_over_single_steps_is_torchs_exponential_average():
    model = small_net()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    options: dict[str, Any] = {"period": 1, "mode": "momentum", "momentum": 0.9, "reinsert": False}
    sampler = PeriodicWeightSampler(model, **options)
    for _ in train(model, optimizer, batches(30), sampler):
        average.update_parameters(model)
    assert_close(list(sampler.published.values()), weights(average.module))


def test_walk_over_checkpoints_and_over_whole_periods():
    steps = trajectory(12)
    _, lawa = sampled(12, period=3, every=3, window=2, mode="walk", reinsert=False)
    assert_close(list(lawa.published.values()), mean([steps[8], steps[11]]))
    _, whole = sampled(12, period=3, every=1, window=3, mode="walk", reinsert=False)
    assert_close(list(whole.published.values()), mean(steps[3:]))
    assert [len(means) for means in (lawa.period_means, whole.period_means)] == [2, 3]


def test_samples_are_evenly_spaced_and_the_last_step_is_one():
    steps = trajectory(10)
    _, sampler = sampled(10, period=8, every=3, start=2, reinsert=False)
    assert_close(list(sampler.published.values()), mean([steps[3], steps[6], steps[9]]))
    assert sampler.n_periods == 1
    _, sampler = sampled(9, period=8, start=2)
    assert sampler.published == {}
    assert PeriodicWeightSampler(small_net(), period=100).policy["every"] == 10


def test_put_back_starts_the_next_period_at_the_average():
    steps = trajectory(6)
    model, _ = sampled(6, period=6, every=1)
    assert_close(weights(model), mean(steps))


def test_noisy_quadratic_has_the_variances_and_the_progress_of_theory():
    """w <- r w + noise; put back: variance v / (1 - a^2) and factor a a period, else v + a^2 L and r^K."""
    r, K, n = 0.9, 10, 40_000
    decay = (1 - r ** np.arange(1, K + 1)) / (1 - r)
    a, v, L = r * (1 - r**K) / (K * (1 - r)), np.sum(decay**2) / K**2, 1 / (1 - r**2)
    generator = torch.Generator().manual_seed(0)
    for reinsert, variance, progress in ((True, v / (1 - a**2), a), (False, v + a**2 * L, r**K)):
        model = nn.ParameterList([nn.Parameter(torch.zeros(n)), nn.Parameter(torch.ones(n))])
        sampler = PeriodicWeightSampler(model, period=K, every=1, reinsert=reinsert)
        for period in range(12):
            before = float(model[1].detach().mean())
            for _ in range(K):
                for parameter in model:
                    noise = torch.randn(n, generator=generator)
                    parameter.data.mul_(r).add_(noise)
                sampler.step()
            if period == 0:
                assert float(model[1].detach().mean()) / before == pytest.approx(progress, abs=0.06)
        assert float(sampler.published["0"].var()) == pytest.approx(variance, rel=0.05)


def test_a_convex_loss_of_the_mean_is_below_the_mean_loss():
    x, y = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 3
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), 2.0)
    sampler = PeriodicWeightSampler(model, period=20, every=1, reinsert=False)
    losses = []
    for index in range(20):
        rows = torch.arange(index, 50, 20)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        sampler.step()
        losses.append(nn.functional.cross_entropy(model(x), y).item())
    with sampler.averaged(), torch.no_grad():
        assert nn.functional.cross_entropy(model(x), y).item() <= np.mean(losses) + 1e-6


POLICIES: list[dict[str, Any]] = [
    {"mode": "average"},
    {"mode": "average", "reinsert": 0.3},
    {"mode": "average", "reinsert": False, "start": 3, "every": 2},
    {"mode": "walk", "window": 3},
    {"mode": "momentum", "momentum": 0.7, "inner_state": "reset"},
]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_resumed_run_equals_an_uninterrupted_one_at_every_position(policy):
    n, period = 17, 5
    data = batches(n)

    def build():
        model = small_net()
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        return model, optimizer, PeriodicWeightSampler(model, optimizer, period=period, **policy)

    model, optimizer, sampler = build()
    files = []
    for _ in train(model, optimizer, data, sampler):
        files.append(io.BytesIO())
        torch.save([model.state_dict(), optimizer.state_dict(), sampler.state_dict()], files[-1])
    for position in range(2 * period, n - 1):
        again, resumed_optimizer, resumed = build()
        states = torch.load(io.BytesIO(files[position].getvalue()), weights_only=True)
        for part, state in zip((again, resumed_optimizer, resumed), states, strict=True):
            part.load_state_dict(state)
        finish(train(again, resumed_optimizer, data[position + 1 :], resumed))
        assert_equal(weights(again), weights(model))
        assert_equal(resumed.published.values(), sampler.published.values())
        assert (resumed.n_steps, resumed.n_periods) == (sampler.n_steps, sampler.n_periods)


def test_a_combination_survives_saving():
    model, sampler = sampled(12, period=3, window=4, mode="walk", reinsert=False)
    x, y = batches(1, seed=9)[0]
    sampler.combine(x, y)
    again = PeriodicWeightSampler(model, period=3, window=4, mode="walk", reinsert=False)
    again.load_state_dict(sampler.state_dict())
    assert_equal(again.published.values(), sampler.published.values())


def test_saved_states_are_copies():
    model, sampler = sampled(8, period=5)
    state = sampler.state_dict()
    kept = copy.deepcopy(state)
    finish(train(model, torch.optim.SGD(model.parameters(), 0.1), batches(4), sampler))
    for before, after in zip(kept["mean"], state["mean"], strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"period": 6}, "saved with period=5, this sampler has 6"),
        ({"mode": "walk"}, "saved with mode='average', this sampler has 'walk'"),
        ({"reinsert": 0.5}, r"saved with reinsert=1\.0, this sampler has 0\.5"),
        ({"model": nn.Linear(3, 5)}, "the saved state has 2.weight of shape .* averages weight|0.weight"),
        ({"model": small_net().double()}, r"0.weight of shape \(5, 3\), torch.float32 where"),
    ],
)
def test_states_of_other_policies_and_architectures_are_refused(change, message):
    _, sampler = sampled(3, period=5)
    given = {"model": small_net(), "period": 5} | change
    other = PeriodicWeightSampler(given.pop("model"), **given)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(sampler.state_dict())
    with pytest.raises(ValueError, match="not a state of this version"):
        other.load_state_dict({})


def test_the_context_shows_the_average_and_returns_the_live_weights():
    model, sampler = sampled(13, period=5, reinsert=False)
    live, published = weights(model), list(sampler.published.values())
    with sampler.averaged() as shown:
        assert shown is model
        assert_equal(weights(model), published)
    assert_equal(weights(model), live)
    with pytest.raises(RuntimeError, match="inside"), sampler.averaged():
        raise RuntimeError("inside")
    assert_equal(weights(model), live)
    _, fresh = sampled(2, period=5)
    with fresh.averaged():
        assert len(weights(model)) == 4


def test_evaluation_does_not_change_the_run():
    def run(evaluate):
        model = small_net()
        sampler = PeriodicWeightSampler(model, period=3)
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        for _ in train(model, optimizer, batches(10), sampler):
            if evaluate:
                with sampler.averaged(), torch.no_grad():
                    model(torch.ones(2, 3))
        return weights(model)

    assert_equal(run(True), run(False))


def test_batch_norm_statistics_are_formed_anew_and_the_live_ones_return():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.0), nn.Linear(4, 2))
    sampler = PeriodicWeightSampler(model, period=4, reinsert=False)
    finish(train(model, torch.optim.SGD(model.parameters(), 0.1), batches(6), sampler))
    inputs = [x for x, _ in batches(5, seed=3)]
    live = copy.deepcopy(model.state_dict())
    peer = copy.deepcopy(model)
    peer.load_state_dict({**live, **sampler.published})
    update_bn(inputs, peer)
    with sampler.averaged(refresh=inputs):
        for name, value in peer.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name
        assert model.training
    for name, value in live.items():
        assert torch.equal(model.state_dict()[name], value), name
    assert model[1].momentum == 0.1
    with sampler.averaged(refresh=[]):
        assert torch.equal(model.state_dict()["1.running_mean"], live["1.running_mean"])
    with pytest.raises(ValueError, match=r"BatchNorm statistics.*pass refresh=batches"), sampler.averaged():
        pass


def test_tied_parameters_count_once_and_frozen_ones_not_at_all():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    sampler = PeriodicWeightSampler(model, period=2)
    trainable = [p for p in model.parameters() if p.requires_grad]
    finish(train(model, torch.optim.SGD(trainable, 0.1), batches(3), sampler))
    assert list(sampler.published) == ["0.weight", "0.bias", "1.bias"]
    assert model[1].weight is model[0].weight


def test_memory_is_the_window_and_one_copy():
    for window in (1, 3):
        model, sampler = sampled(20, period=4, window=window, mode="walk")
        state = sampler.state_dict()
        held = sum(v.numel() for group in [state["mean"], state["origin"], *state["means"]] for v in group)
        assert held <= (window + 1) * sum(p.numel() for p in model.parameters())


def test_half_precision_weights_are_averaged_in_single():
    model = nn.ParameterList([nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))])
    sampler = PeriodicWeightSampler(model, period=2000, every=1, reinsert=False)
    sampler.step()
    model[0].data.fill_(1.0)
    for _ in range(1999):
        sampler.step()
    assert float(sampler.period_means[0]["0"]) == pytest.approx(0.9995, abs=0.004)
    assert float(sampler.state_dict()["means"][0][0]) == pytest.approx(0.9995, abs=1e-5)
    with sampler.averaged():
        assert model[0].dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["keep", "reset"])
def test_the_optimisers_state_is_kept_or_cleared(kind):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    sampler = PeriodicWeightSampler(model, optimizer, period=3, inner_state=kind)
    finish(train(model, optimizer, batches(3), sampler))
    assert bool(optimizer.state) == (kind == "keep")


def test_a_step_hook_a_schedule_and_lbfgs_work():
    model = small_net()
    x, y = batches(1)[0]
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    sampler = PeriodicWeightSampler(model, optimizer, period=2, inner_state="reset")

    def after_step(*_: Any) -> None:
        sampler.step()

    optimizer.register_step_post_hook(after_step)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    first = float(optimizer.step(closure).detach())
    for _ in range(3):
        optimizer.step(closure)
        schedule.step()
    assert sampler.n_steps == 4
    assert float(closure().detach()) < first
    with pytest.raises(ValueError, match=r"LBFGS keeps pairs .* use inner_state='reset'"):
        PeriodicWeightSampler(model, optimizer, period=2)


def test_modules_that_cannot_be_copied_are_sampled():
    model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    sampler = PeriodicWeightSampler(model, period=2)
    finish(train(model, torch.optim.SGD(model.parameters(), 0.1), batches(4), sampler))
    assert sampler.n_periods == 2


def test_divergence_goes_back_to_the_published_weights():
    model = small_net()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    sampler = PeriodicWeightSampler(model, optimizer, period=3)
    finish(train(model, optimizer, batches(3), sampler))
    good = list(sampler.published.values())
    broken = [(x * np.nan, y) for x, y in batches(3)]
    with pytest.warns(ConvergenceWarning, match="not finite by step 6: the last published .* was cleared"):
        finish(train(model, optimizer, broken, sampler))
    assert_equal(weights(model), good)
    finish(train(model, optimizer, batches(6), sampler))
    assert all(bool(w.isfinite().all()) for w in weights(model))
    alone = PeriodicWeightSampler(model, period=3)
    finish(train(model, optimizer, batches(3), alone))
    with pytest.warns(ConvergenceWarning, match=r"not cleared \(pass optimizer= for that\)"):
        finish(train(model, optimizer, broken, alone))


def test_divergence_before_anything_was_published_is_an_error():
    model = small_net()
    sampler = PeriodicWeightSampler(model, period=2)
    model[0].weight.data.fill_(np.inf)
    sampler.step()
    with pytest.raises(FloatingPointError, match="before a period has ended"):
        sampler.step()


def test_models_that_change_are_refused():
    for change in ("shape", "object", "frozen"):
        model, sampler = sampled(1, period=2)
        if change == "shape":
            model[2].weight.data = torch.zeros(2, 6)
        elif change == "object":
            model[2].weight = nn.Parameter(torch.zeros(2, 5))
        else:
            model[2].weight.requires_grad_(False)
        message = {
            "shape": r"2.weight of shape \(2, 6\), torch.float32 where this sampler averages 2.weight",
            "object": "replaced by new objects: make a new sampler",
            "frozen": "2.bias of shape .* where this sampler averages 2.weight",
        }[change]
        with pytest.raises(ValueError, match=message):
            sampler.step()


def test_memory_shared_by_two_parameters_is_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = nn.Parameter(model.state_dict()["0.weight"])
    with pytest.raises(ValueError, match=r"0.weight and 1.weight share their memory but are two objects"):
        PeriodicWeightSampler(model, period=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"period": 0}, "period must be an integer >= 1, got 0"),
        ({"window": 0}, "window must be an integer >= 1"),
        ({"every": 7}, "every must not exceed the period of 5 steps, got 7"),
        ({"mode": "best"}, "mode must be one of average, walk, momentum, got 'best'"),
        ({"reinsert": 2}, "reinsert must be a finite number >= 0 and <= 1"),
        ({"momentum": -0.1}, "momentum must be"),
        ({"start": -1}, "start must be an integer >= 0"),
        ({"inner_state": "drop"}, "inner_state must be one of keep, reset"),
        ({"inner_state": "reset"}, "needs the optimizer whose state"),
        ({"model": nn.ReLU()}, "no trainable parameter"),
        ({"model": nn.LazyLinear(3)}, "weight has no shape yet: run one forward pass first"),
    ],
)
def test_bad_settings_are_named(change, message):
    given = {"model": small_net(), "period": 5} | change
    with pytest.raises(ValueError, match=message):
        PeriodicWeightSampler(given.pop("model"), **given)


def test_nothing_to_combine_is_said():
    _, sampler = sampled(1, period=5)
    x, y = batches(1)[0]
    with pytest.raises(ValueError, match="no period has ended yet"):
        sampler.combine(x, y)
