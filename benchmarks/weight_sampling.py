"""Periodic weight sampling against its controls: steps to the plain optimiser's loss, volatility, final loss.

Every case (data, label noise in the training rows, optimiser, schedule, network) runs ten paired seeds: same
start, rows and order for every variant. Rates are tuned for the last iterate and for the average that is not
put back, on a grid with seeds of its own. Averages that are not put back are read off the plain trajectory:
last period mean, mean of six period means (one epoch), EMA and LAWA of that window, SWA of the second half,
combination by held-out loss. Runs of their own: put back, at the plain rate and at that rate over the
centroid of the samples; the plain run at the rate times the centroid (the matched control); Lookahead;
Schedule-Free.

Dense networks are 784-300-10 trained on 100 damped principal components, which fold into the first
layer. Validation, held-out and test labels carry no noise.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from common import RESULTS, measure, parse_arguments, write_record
from sampling_runs import (
    BATCH,
    EPOCHS,
    PERIODS,
    WALK,
    Case,
    Run,
    batches,
    ensemble,
    evaluate,
    make_optimizer,
    quick,
    rows_of,
    run,
)

from liftopt import PeriodicWeightSampler, mix_weights

SEEDS = tuple(range(10))
TUNING_SEEDS = (100, 101)
RATES = {
    "sgd": (0.1, 0.2, 0.4, 0.8, 1.6),
    "momentum": (0.01, 0.02, 0.04, 0.08, 0.16),
    "adam": (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
    "schedule-free sgd": (0.5, 1.0, 2.0, 4.0),
    "schedule-free adam": (5e-3, 1e-2, 2e-2, 4e-2),
}
PUT_BACK = {"mode": "average", "reinsert": True, "window": 1}
LOOKAHEAD = {"mode": "average", "period": 5, "every": 5, "reinsert": 0.5, "window": 1}
COMBINED = 12  # period means that a combination along the run weighs
FINAL_MEANS = 24
TAIL = 0.2

PLAIN, PERIOD_MEAN, MEANS = "last", "last: period mean", f"last: {WALK} period means"
OPTIONS = {  # what a user of the sampler can choose; the rest are controls
    PERIOD_MEAN: "period mean",
    MEANS: f"{WALK} means",
    "put back": "put back",
    "put back, rate / centroid": "put back, rate / centroid",
    f"{WALK} means, own rate": f"{WALK} means, own rate",
    "combined": "combined",
}
CONTROLS = {
    "rate x centroid: period mean": "rate x centroid",
    "EMA": "EMA",
    "LAWA": "LAWA",
    "SWA": "SWA",
    "Lookahead": "Lookahead",
    "Schedule-Free": "Schedule-Free",
}


def cases(small: bool) -> list[Case]:
    """All cases, the most telling first."""
    if small:
        return [quick(Case("mnist", 0.2, "adam", "constant"))]
    dense = [
        Case(data, noise, optimizer, schedule)
        for data in ("mnist", "fashion_mnist")
        for noise in (0.2, 0.0)
        for schedule in ("constant", "cosine")
        for optimizer in ("adam", "momentum", "sgd")
    ]
    lenet = [
        Case("mnist", noise, optimizer, schedule, "lenet", 60 * BATCH)
        for schedule in ("constant", "cosine")
        for noise in (0.2, 0.0)
        for optimizer in ("adam", "momentum", "sgd")
    ]
    return dense[:6] + lenet[:1] + dense[6:9] + dense[12:15] + dense[9:12] + dense[15:] + lenet[1:]


def tune(case: Case, seeds: Sequence[int]) -> dict[str, float]:
    """Rates of the least final validation loss, of the last iterate and of the average."""
    rates = RATES[case.optimizer]
    found = [run(case, seeds, rate, every=2 * PERIODS) for rate in rates]
    losses = {name: [float(one.curve(name)[:, -1].mean()) for one in found] for name in (PLAIN, MEANS)}
    return {name: rates[int(np.nanargmin(values))] for name, values in losses.items()}


def tune_schedule_free(case: Case, seeds: Sequence[int]) -> float:
    """Rate of Schedule-Free with the least final validation loss."""
    rates = RATES[case.optimizer]
    losses = [run(case, seeds, rate, every=2 * PERIODS).curve(PLAIN)[:, -1].mean() for rate in rates]
    return rates[int(np.nanargmin(losses))]


def centroid(case: Case) -> float:
    """Mean position of the samples in a period, as a share of it."""
    sampler = PeriodicWeightSampler(ensemble(case, [0]), period=case.period)
    every = sampler.policy["every"]
    return float(np.mean(np.arange(case.period, 0, -every))) / case.period


def combine_along(case: Case, found: Run, seeds: Sequence[int]) -> np.ndarray:
    """Validation losses (members, checkpoints) of combinations formed at the end of epochs.

    Of every second epoch.
    """
    rows, lenet = rows_of(case), case.model == "lenet"
    X, y = (part[: 400 if lenet else None] for part in rows.parts["held_out"])
    stride = 2 * PERIODS
    out = np.full((len(seeds), len(found.means)), np.nan)
    for index in range(len(seeds)):
        model, pick = found.model.member(index)
        means = [pick(mean) for mean in found.means]
        for end in range(stride, len(means) + 1, stride):
            stored = means[max(0, end - COMBINED) : end]
            mixture = mix_weights(model, stored, X, y, max_iter=2)
            out[index, end - 1 :] = score(model, stored, mixture.coefficients, rows.parts["validation"])[0]
    return out


def score(
    model: Any, stored: Sequence[Mapping[str, Any]], coefficients: Any, part: Any
) -> tuple[float, float]:
    """Loss and accuracy of a combination of stored weights."""
    mixed = {k: sum(float(c) * w[k] for c, w in zip(coefficients, stored, strict=True)) for k in stored[0]}
    values = dict(model.named_parameters())
    for name, value in mixed.items():
        values[name].data = value.contiguous()
    loss, accuracy = evaluate(lambda X: model(X)[None], part)
    return float(loss[0]), float(accuracy[0])


def coefficients_study(case: Case, found: Run, seeds: Sequence[int]) -> dict[str, Any]:
    """Best coefficients of the last period means against their uniform mean, best single and greedy soup."""
    rows, lenet = rows_of(case), case.model == "lenet"
    X, y = (part[: 500 if lenet else None] for part in rows.parts["held_out"])
    test = tuple(part[:4000] for part in rows.parts["test"])
    record: dict[str, list[float]] = {}
    for index in range(len(seeds)):
        model, pick = found.model.member(index)
        stored = [pick(mean) for mean in found.means[-FINAL_MEANS:]]
        k = len(stored)
        start = time.process_time()
        mixture = mix_weights(model, stored, X, y, max_iter=3)
        spent = time.process_time() - start
        singles = [score(model, stored, vertex, (X, y))[0] for vertex in np.eye(k)]
        tried = {
            "kept": mixture.coefficients,
            "solution": mixture.solution,
            "uniform": np.full(k, 1 / k),
            "single": np.eye(k)[int(np.argmin(singles))],
            "greedy": greedy(model, stored, singles, (X, y)),
        }
        for name, coefficients in tried.items():
            loss, accuracy = score(model, stored, coefficients, test)
            record.setdefault(f"{name} loss", []).append(loss)
            record.setdefault(f"{name} accuracy", []).append(accuracy)
        record.setdefault("gap", []).append(mixture.gap)
        record.setdefault("support", []).append(int((mixture.solution > 1e-6).sum()))
        record.setdefault("cpu", []).append(spent)
    return {"k": k, **record}


def greedy(model: Any, stored: Sequence[Any], singles: Sequence[float], part: Any) -> np.ndarray:
    """Greedy soup: best first, each added if the held-out loss falls."""
    chosen: list[int] = []
    best = np.inf
    for index in np.argsort(singles):
        share = np.zeros(len(stored))
        share[[*chosen, index]] = 1 / (len(chosen) + 1)
        loss = score(model, stored, share, part)[0]
        if loss < best:
            best = loss
            chosen.append(int(index))
    share = np.zeros(len(stored))
    share[chosen] = 1 / len(chosen)
    return share


def study(case: Case, schedule_free: dict[Any, Any], small: bool) -> dict[str, Any]:
    """All variants of one case."""
    seeds, tuning = (SEEDS[:2], TUNING_SEEDS[:1]) if small else (SEEDS, TUNING_SEEDS)
    rates = tune(case, tuning)
    plain = run(case, seeds, rates[PLAIN], controls=True, window=EPOCH_MEANS)
    curves = {name: plain.curve(name) for name in plain.losses}
    accuracy = dict(plain.accuracy)
    part = centroid(case)

    def add(label: str, found: Run, source: str | None = None) -> None:
        curves[label] = found.curve(source or label)
        accuracy[label] = found.accuracy[source or label]

    add("put back", run(case, seeds, rates[PLAIN], PUT_BACK, label="put back"))
    add("rate x centroid: period mean", run(case, seeds, part * rates[PLAIN]), PERIOD_MEAN)
    add("Lookahead", run(case, seeds, rates[PLAIN], LOOKAHEAD, label="Lookahead"))
    own = plain if rates[MEANS] == rates[PLAIN] else run(case, seeds, rates[MEANS])
    add(f"{WALK} means, own rate", own, MEANS)
    add(
        "put back, rate / centroid",
        run(case, seeds, rates[PLAIN] / part, PUT_BACK, label="put back"),
        "put back",
    )
    free = free_of(case)
    if free not in schedule_free:
        rate = tune_schedule_free(free, tuning)
        schedule_free[free] = rate, run(free, seeds, rate)
    rates["Schedule-Free"] = schedule_free[free][0]
    add("Schedule-Free", schedule_free[free][1], PLAIN)
    curves["combined"] = combine_along(case, plain, seeds)
    coefficients = None
    if case.schedule == "constant" and (case.noise or case.optimizer == "adam"):
        coefficients = coefficients_study(case, plain, seeds)
    return {
        "case": vars(case),
        "name": case.name,
        "rates": rates,
        "centroid": part,
        "variants": {
            name: summary(curve, curves[PLAIN], accuracy.get(name)) for name, curve in curves.items()
        },
        "put_back": put_back_verdict(curves),
        "coefficients": coefficients,
    }


EPOCH_MEANS = EPOCHS * PERIODS  # every period mean of a run


def free_of(case: Case) -> Case:
    """The Schedule-Free case beside ``case``: its optimiser's kind, constant rate."""
    kind = "schedule-free adam" if case.optimizer == "adam" else "schedule-free sgd"
    return Case(case.data, case.noise, kind, "constant", case.model, case.rows)


def summary(curve: np.ndarray, plain: np.ndarray, accuracy: np.ndarray | None) -> dict[str, Any]:
    """Steps, volatility and final loss of one variant against the plain optimiser, with paired errors."""
    tail = max(3, round(TAIL * plain.shape[1]))
    target = plain[:, -tail:].mean(axis=1)
    own, theirs = (first_at_most(values, target) for values in (curve, plain))
    budget = plain.shape[1]
    log_ratio = np.log(np.minimum(own, budget) / theirs)
    difference = curve[:, -1] - plain[:, -1]
    root = np.sqrt(len(curve))
    return {
        "mean_curve": [None if np.isnan(column).any() else float(column.mean()) for column in curve.T],
        "ratio": float(np.exp(log_ratio.mean())),
        "ratio_error": float(np.exp(log_ratio.mean()) * log_ratio.std(ddof=1) / root),
        "share_of_budget": float(np.mean(np.minimum(own, budget)) / budget),
        "not_reached": int(np.isinf(own).sum()),
        "volatility": float(np.mean([detrended(row[-tail:]) for row in curve])),
        "volatility_ratio": float(
            np.mean([detrended(row[-tail:]) for row in curve])
            / np.mean([detrended(row[-tail:]) for row in plain])
        ),
        "final": float(curve[:, -1].mean()),
        "gain": float(-difference.mean()),
        "gain_error": float(difference.std(ddof=1) / root),
        "best": float(np.nanmin(curve, axis=1).mean()),
        "accuracy": None if accuracy is None else float(accuracy.mean()),
    }


def first_at_most(curve: np.ndarray, target: np.ndarray) -> np.ndarray:
    """First checkpoint (from 1) at or below the target of its seed; infinite if there is none."""
    below = curve <= target[:, None]
    return np.where(below.any(axis=1), below.argmax(axis=1) + 1.0, np.inf)


def detrended(values: np.ndarray) -> float:
    """Standard deviation about a straight line."""
    steps = np.arange(values.size)
    return float(np.std(values - np.polyval(np.polyfit(steps, values, 1), steps)))


def put_back_verdict(curves: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Final loss put back minus that of its two controls, with paired errors."""
    back = curves["put back"][:, -1]
    found = {}
    for name, control in (("same average", PERIOD_MEAN), ("rate x centroid", "rate x centroid: period mean")):
        difference = back - curves[control][:, -1]
        error = float(difference.std(ddof=1) / np.sqrt(difference.size))
        mean = float(difference.mean())
        verdict = "wins" if mean < -2 * error else "loses" if mean > 2 * error else "level"
        found[name] = {"difference": mean, "error": error, "verdict": verdict}
    return found


def overhead(small: bool) -> list[dict[str, Any]]:
    """CPU time of sampling as a share of a training step, on networks alone, and copies held."""
    found = []
    long: dict[str, Any] = {"noise": 0.0, "schedule": "constant", "rows": 300 * BATCH}
    cases_ = [
        Case("mnist", optimizer="adam", **long),
        Case("mnist", optimizer="adam", model="raw", **long),
        Case("mnist", optimizer="momentum", model="raw", **long),
        Case("mnist", optimizer="adam", model="lenet", **long),
    ]
    for case in cases_[:1] if small else cases_:
        for period, every in ((100, None), (100, 1)):
            found.append(overhead_of(case, period, every, 2 if small else 9))
            print(found[-1], flush=True)
    return found


def overhead_of(case: Case, period: int, every: int | None, repeats: int) -> dict[str, Any]:
    """Median over repeats of the time in ``sampler.step`` over that of the steps themselves."""
    model = ensemble(case, [0])
    optimizer = make_optimizer(case.optimizer, model, 1e-3)
    sampler = PeriodicWeightSampler(model, period=period, every=every)
    source = batches(case, [0])
    shares = []
    for _ in range(repeats):
        training = sampling = 0.0
        for _ in range(period):
            x, y = next(source)
            start = time.process_time()
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
            optimizer.step()
            middle = time.process_time()
            sampler.step()
            training, sampling = training + middle - start, sampling + time.process_time() - middle
        shares.append(sampling / training)
    state = sampler.state_dict()
    held = sum(v.numel() for group in [state["mean"], *state["means"], state["origin"]] for v in group)
    return {
        "name": case.name.split(", constant")[0],
        "period": period,
        "every": sampler.policy["every"],
        "share": float(np.median(shares)),
        "copies": held / sum(p.numel() for p in model.parameters()),
    }


def main() -> None:
    """Run case by case; the record is written after each, and an interrupted run goes on from it."""
    small = parse_arguments(__doc__).quick
    torch.set_num_threads(1)
    found, costs = unfinished(small)
    costs = costs or overhead(small)
    schedule_free: dict[Any, Any] = {}
    todo = list(dict.fromkeys(cases(small)))
    for case in todo:
        if case.name in {entry["name"] for entry in found}:
            continue
        done = measure(lambda case=case: study(case, schedule_free, small))
        found.append({**done.value, "cpu": done.cpu})
        variants = done.value["variants"]
        line = {name: round(variants[name]["ratio"], 2) for name in (*OPTIONS, *CONTROLS) if name in variants}
        print(case.name, f"{done.cpu:.0f} s", done.value["rates"], line, done.value["put_back"], flush=True)
        missing = [one.name for one in todo if one.name not in {entry["name"] for entry in found}]
        payload = {"seeds": SEEDS, "cases": found, "missing": missing, "overhead": costs}
        write_record("weight_sampling", {**payload, "table": tables(found, costs)}, quick=small)


def unfinished(small: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Cases and overheads of a record that lacks cases; empty if there is none, or it is complete."""
    path = RESULTS / "weight_sampling.json"
    record = json.loads(path.read_text()) if path.exists() and not small else {}
    return (record["cases"], record["overhead"]) if record.get("missing") else ([], [])


def tables(found: Sequence[Mapping[str, Any]], costs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All tables of the record."""
    return [
        reached_table(found),
        comparison_table(
            found,
            "ratio",
            "Weight sampling: steps to the plain optimiser's final loss",
            [*RATIO_NOTES, f"{len(found)} of {len(set(cases(False)))} cases have been run."],
        ),
        comparison_table(found, "final", "Weight sampling: final validation loss", FINAL_NOTES),
        comparison_table(found, "accuracy", "Weight sampling: final test accuracy (%)", FINAL_NOTES[:1]),
        comparison_table(
            found, "volatility_ratio", "Weight sampling: volatility in the last fifth", VOLATILE_NOTES
        ),
        verdict_table(found),
        coefficients_table(found),
        overhead_table(costs),
    ]


def reached_table(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row a kind of case: how many reach the goals, and where putting back wins."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for entry in found:
        case = entry["case"]
        network = "LeNet-5" if case["model"] == "lenet" else "784-300-10"
        labels = "noisy labels" if case["noise"] else "clean labels"
        kinds.setdefault(f"{network}, {labels}, {case['schedule']}", []).append(entry)
    rows = []
    for kind, entries in sorted(kinds.items()):
        rows.append(
            [
                kind,
                *goal([best_of(entry, "ratio") for entry in entries], STEPS_GOAL),
                *goal([best_of(entry, "volatility_ratio") for entry in entries], VOLATILITY_GOAL),
                *[tally(entries, control) for control in ("same average", "rate x centroid")],
            ]
        )
    columns = ["cases", f"steps <= {STEPS_GOAL:g}", "least steps", f"volatility <= {VOLATILITY_GOAL:.2f}"]
    columns += ["least volatility", "put back against the same average", "against rate x centroid"]
    return {
        "title": "Weight sampling: what is reached, by kind of case",
        "columns": columns,
        "rows": rows,
        "notes": REACHED_NOTES,
    }


def best_of(entry: Mapping[str, Any], key: str) -> float:
    """Least ratio of the sampler's options."""
    return min(entry["variants"][name][key] for name in OPTIONS if name != "combined" or key == "ratio")


def goal(values: Sequence[float], bound: float) -> list[str]:
    """How many meet the bound, and the range."""
    return [
        f"{sum(value <= bound for value in values)} of {len(values)}",
        f"{min(values):.2f} to {max(values):.2f}",
    ]


def tally(entries: Sequence[Mapping[str, Any]], control: str) -> str:
    """Counts of the verdicts on putting back."""
    verdicts = [entry["put_back"][control]["verdict"] for entry in entries]
    return ", ".join(f"{verdicts.count(one)} {one}" for one in ("wins", "level", "loses") if one in verdicts)


STEPS_GOAL, VOLATILITY_GOAL = 0.8, 1 / 3
REACHED_NOTES = [
    "Of the sampler's options, the one with the least steps to the plain optimiser's final loss (relative to "
    "the plain optimiser's), and the one with the least volatility, case by case; the tables below have all."
]
RATIO_NOTES = [
    "9,600 training rows (LeNet-5: 3,840), four epochs in batches of 64; the dense networks train on 100 "
    "damped principal components. Rates come from grids of factor two, on seeds of their own: "
    + "; ".join(f"{name} {min(grid):g} to {max(grid):g}" for name, grid in RATES.items()),
    "Steps until the published weights reach the mean validation loss of the plain optimiser's last fifth, "
    "over the steps that the plain optimiser itself needs for it: geometric mean over 10 paired seeds. A "
    "mark (n) counts seeds that never reach it, taken at the whole budget.",
    "best: the option of the sampler with the least ratio; controls to its right. Combined weights were "
    "formed after every second epoch only, so that their steps are upper bounds.",
]
FINAL_NOTES = ["Mean over 10 paired seeds after the last step; labels of these rows carry no noise."]
VOLATILE_NOTES = [
    "Standard deviation of the validation loss about a straight line over the last fifth of the steps (at "
    "the ends of periods), over that of the plain optimiser."
]


def comparison_table(
    found: Sequence[Mapping[str, Any]], key: str, title: str, notes: Sequence[str]
) -> dict[str, Any]:
    """One row a case, one column a variant."""
    plain = [] if key in ("ratio", "volatility_ratio") else ["plain"]
    best = ["best"] if key == "ratio" else []
    rows = []
    for entry in found:
        variants = entry["variants"]
        values = [cell(variants.get(name), key) for name in OPTIONS]
        options = {OPTIONS[name]: variants[name]["ratio"] for name in OPTIONS if name in variants}
        rows.append(
            [
                entry["name"],
                *([f"{entry['rates'][PLAIN]:g} / {entry['rates'][MEANS]:g}"] if best else []),
                *([cell(variants[PLAIN], key)] if plain else []),
                *values,
                *([min(options, key=lambda name: options[name])] if best else []),
                *[cell(variants.get(name), key) for name in CONTROLS],
            ]
        )
    columns = [
        "case",
        *(["rate / own rate"] if best else []),
        *plain,
        *OPTIONS.values(),
        *best,
        *CONTROLS.values(),
    ]
    return {"title": title, "columns": columns, "rows": rows, "notes": list(notes)}


def cell(variant: Mapping[str, Any] | None, key: str) -> Any:
    if variant is None or variant[key] is None:
        return None
    if key == "ratio":
        return f"{variant['ratio']:.2f}" + (f" ({variant['not_reached']})" if variant["not_reached"] else "")
    digits = {"final": 4, "volatility_ratio": 2, "accuracy": 2}[key]
    return f"{(100 if key == 'accuracy' else 1) * variant[key]:.{digits}f}"


def verdict_table(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = []
    for entry in found:
        row = [entry["name"]]
        for name in ("same average", "rate x centroid"):
            control = entry["put_back"][name]
            row += [f"{control['difference']:+.4f} +/- {control['error']:.4f}", control["verdict"]]
        rows.append(row)
    columns = [
        "case",
        "put back - same average, not put back",
        "",
        "put back - rate x centroid, not put back",
        "",
    ]
    notes = ["Final validation loss, paired over 10 seeds; a verdict needs two standard errors."]
    return {
        "title": "Weight sampling: where putting back wins",
        "columns": columns,
        "rows": rows,
        "notes": notes,
    }


def coefficients_table(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = []
    for entry in found:
        study_ = entry["coefficients"]
        if study_ is None:
            continue
        losses = {name: np.array(study_[f"{name} loss"]) for name in ("kept", "uniform", "single", "greedy")}
        cells = [f"{losses[name].mean():.4f}" for name in losses]
        for name in ("uniform", "single"):
            gain = losses[name] - losses["kept"]
            cells.append(f"{gain.mean():+.4f} +/- {gain.std(ddof=1) / np.sqrt(gain.size):.4f}")
        rows.append(
            [entry["name"], *cells, float(np.median(study_["support"])), float(np.median(study_["cpu"]))]
        )
    columns = ["case", "best coefficients", "uniform mean", "best single", "greedy soup", "gain over uniform"]
    columns += ["gain over single", "support", "CPU s"]
    notes = [
        f"Test loss of combinations of the last {FINAL_MEANS} period means, chosen on 1,000 held-out rows."
    ]
    title = "Weight sampling: coefficients from held-out rows"
    return {"title": title, "columns": columns, "rows": rows, "notes": notes}


def overhead_table(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = [[c["name"], c["period"], c["every"], 100 * c["share"], c["copies"]] for c in costs]
    columns = ["network", "period", "every", "time of a step (%)", "copies of the weights"]
    notes = ["CPU time in `sampler.step()`, put back included, over that of the training step; window 1."]
    return {"title": "Weight sampling: overhead", "columns": columns, "rows": rows, "notes": notes}


if __name__ == "__main__":
    main()
