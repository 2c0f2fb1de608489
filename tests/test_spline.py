import numpy as np
import pytest
from sklearn.datasets import load_digits, load_iris
from sklearn.inspection import partial_dependence
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from liftopt import Network, SplineClassifier, SplineRegressor
from liftopt.methods import make_estimator


def friedman(rng, n):
    X = rng.random((n, 6))
    truth = 10 * np.sin(np.pi * X[:, 0] * X[:, 1]) + 20 * (X[:, 2] - 0.5) ** 2 + 10 * X[:, 3] + 5 * X[:, 4]
    return X, truth


@pytest.fixture
def data(rng):
    X, truth = friedman(rng, 600)
    return X * [1, 10, 100, 0.1, 1, 1] + 3.0, truth + rng.normal(size=600)


@pytest.fixture
def model(data):
    return SplineRegressor(max_terms=41).fit(*data)


def everywhere(X):
    """Rows inside and far outside the range of the data."""
    return np.vstack([X, X.mean(0) + 3 * (X - X.mean(0)), X - 100 * X.std(0), X + 100 * X.std(0)])


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_network_equals_spline_everywhere(data, degree):
    X, y = data
    Y = np.column_stack([y, 1e3 * X[:, 0] * X[:, 1] * X[:, 4] - 50, np.cos(9 * X[:, 5])])
    model = SplineRegressor(max_terms=61, max_degree=degree, penalty=2).fit(X, Y)
    rows = everywhere(X)
    spline, network = model.spline_(rows), model.network_(rows)
    scale = np.abs(spline).max(axis=0)
    assert model.network_.dtype == np.float64
    np.testing.assert_allclose(network / scale, spline / scale, atol=1e-12)
    np.testing.assert_allclose(model.network_(X), model.spline_(X), atol=1e-9)
    np.testing.assert_array_equal(model.predict(X), model.network_(X))
    assert len(model.network_.layers) == model.spline_.basis.degree + 1


def test_torch_gives_the_same_outputs(data, model):
    torch = pytest.importorskip("torch")
    X, _ = data
    with torch.no_grad():
        out = model.network_.to_torch()(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(out, model.network_(X), atol=1e-9)


def test_spline_is_continuous(model, data):
    X, _ = data
    knots = {hinge for term in model.spline_.basis.terms for hinge in term}
    for hinge in knots:
        beside = np.repeat(X[:20], 2, axis=0)
        step = 1e-9 * model.spline_.basis.scale[hinge.variable]
        beside[::2, hinge.variable], beside[1::2, hinge.variable] = hinge.knot - step, hinge.knot + step
        out = model.predict(beside)
        np.testing.assert_allclose(out[::2], out[1::2], atol=1e-5)


def test_linear_terms_continue_as_straight_lines(rng):
    X = rng.normal(size=(200, 2))
    model = SplineRegressor().fit(X, X @ [2.0, -1.0] + 3.0)
    far = np.array([[100.0, -50.0], [-100.0, 70.0]])
    np.testing.assert_allclose(model.predict(far), far @ [2.0, -1.0] + 3.0, atol=1e-8)


def test_products_have_no_network_and_say_so(data):
    X, y = data
    model = SplineRegressor(interaction="product").fit(X, y)
    assert not hasattr(model, "network_")
    with pytest.raises(ValueError, match="interaction='min'"):
        model.spline_.to_network()
    np.testing.assert_array_equal(model.predict(X), model.spline_(X)[:, 0])
    assert hasattr(model.set_params(interaction="min").fit(X, y), "network_")


def test_fits_the_truth(rng):
    X, truth = friedman(rng, 2000)
    model = SplineRegressor().fit(X, truth + rng.normal(size=2000))
    fresh, clean = friedman(rng, 2000)
    assert np.sqrt(np.mean((model.predict(fresh) - clean) ** 2)) < 0.4


def test_intercept_alone_is_a_network(rng):
    X = np.ones((30, 2))
    y = rng.normal(size=30)
    model = SplineRegressor().fit(X, y)
    assert model.predict(X) == pytest.approx(np.full(30, y.mean()))
    classifier = SplineClassifier().fit(X, np.arange(30) % 3)
    np.testing.assert_allclose(classifier.predict_proba(X), 1 / 3)


def test_nested_cross_validation_prunes(data):
    X, y = data
    model = SplineRegressor(max_terms=41, pruning="cv", random_state=0).fit(X, y)
    full = SplineRegressor(max_terms=41, pruning="none").fit(X, y)
    assert 5 < len(model.spline_.basis) < len(full.spline_.basis) == 41
    with pytest.raises(ValueError, match="pruning must be"):
        SplineRegressor().set_params(pruning="aic").fit(X, y)


def test_float_weights_have_no_unit(data, rng):
    X, y = data
    weight = rng.random(600) + 0.5
    a = SplineRegressor(max_terms=15).fit(X, y, weight)
    b = SplineRegressor(max_terms=15).fit(X, y, 1e-6 * weight)
    np.testing.assert_allclose(a.predict(X), b.predict(X), rtol=1e-8)


def test_units_of_a_target_do_not_dominate(data, rng):
    X, y = data
    noise = rng.normal(size=600)
    alone = SplineRegressor(max_terms=21).fit(X, np.column_stack([y, noise]))
    scaled = SplineRegressor(max_terms=21).fit(X, np.column_stack([y, 1e6 * noise]))
    assert alone.spline_.basis.terms == scaled.spline_.basis.terms


def test_classifier_digits_beats_logistic_regression():
    X, y = load_digits(return_X_y=True)
    held = np.arange(len(y)) % 5 == 0
    model = SplineClassifier(max_degree=1, max_terms=81, alpha=1e-2, penalty=2).fit(X[~held], y[~held])
    linear = LogisticRegression(max_iter=2000).fit(X[~held] / 16, y[~held])
    assert model.score(X[held], y[held]) > 0.96
    assert model.score(X[held], y[held]) >= linear.score(X[held] / 16, y[held])
    rows = everywhere(X)
    np.testing.assert_allclose(model.network_.scores(rows), model.spline_(rows), rtol=1e-9, atol=1e-9)
    assert "softmax" in str(model.network_.layers[-1])


def test_softmax_head_equals_scikit_learn():
    X, y = load_iris(return_X_y=True)
    model = SplineClassifier(alpha=0.05).fit(X, y)
    design = model.spline_.basis(X)[:, 1:]
    design = (design - design.mean(0)) / design.std(0)
    reference = LogisticRegression(C=1 / (0.05 * len(y)), max_iter=10_000, tol=1e-8).fit(design, y)
    np.testing.assert_allclose(model.predict_proba(X), reference.predict_proba(design), atol=1e-3)


def test_classifier_with_products_and_weights():
    X, y = load_iris(return_X_y=True)
    model = SplineClassifier(max_degree=2, interaction="product", penalty=1).fit(X, y, np.ones(150))
    assert not hasattr(model, "network_")
    assert model.score(X, y) > 0.95
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1.0)


def test_a_class_without_weight_is_never_predicted():
    X, y = load_iris(return_X_y=True)
    model = SplineClassifier().fit(X, y, (y > 0).astype(float))
    assert set(model.predict(X[y > 0])) == {1, 2}
    assert model.predict_proba(X[y > 0])[:, 0].max() < 1e-6


def test_missing_values_are_refused_with_a_remedy(data):
    X, y = data
    X[3, 2] = np.nan
    with pytest.raises(ValueError, match="imputer"):
        SplineRegressor().fit(X, y)


def test_method_table_and_grid_search(data):
    X, y = data
    assert isinstance(make_estimator("spline", "regression"), SplineRegressor)
    search = GridSearchCV(SplineRegressor(max_terms=15), {"max_degree": [1, 2]}, cv=2).fit(X, y)
    assert search.best_params_["max_degree"] == 2
    assert isinstance(search.best_estimator_.network_, Network)


def test_summary_formula_and_terms(model, data):
    text = model.summary()
    assert f"{len(model.spline_.basis)} of 41 terms" in text
    assert len(text.splitlines()) == len(model.spline_.basis) + 2
    records = model.terms()
    assert [record["term"] for record in records[:1]] == ["1"]
    rises = [record["rise"] for record in records[1:]]
    assert rises == sorted(rises, reverse=True)
    X, _ = data
    names = {f"x{j}": X[:, j] for j in range(6)}
    assert any(name in text for name in names)
    assert len(model.formula().splitlines()) == len(records)


def evaluate(text, X):
    """Evaluate a formula with numpy, to check what it says."""
    expression = text.replace("\n", " ").replace(")+", ").clip(0)").replace("min(", "minimum(")
    scope = {"minimum": np.minimum, **{f"x{j}": X[:, j] for j in range(X.shape[1])}}
    return eval(expression, scope)


@pytest.mark.parametrize("interaction", ["min", "product"])
def test_formula_reproduces_the_predictions(data, interaction):
    X, y = data
    model = SplineRegressor(max_terms=15, interaction=interaction).fit(X, y)
    np.testing.assert_allclose(evaluate(model.formula(digits=17), X), model.predict(X), rtol=1e-8)


def test_deletion_rise_and_anova_equal_refits(model, data):
    X, y = data
    basis = model.spline_.basis
    B = basis(X)
    z = (y - y.mean()) / y.std()

    def rss(keep):
        c = np.linalg.lstsq(B[:, keep], z, rcond=None)[0]
        return np.sum((z - B[:, keep] @ c) ** 2)

    everything = list(range(len(basis)))
    for index in (1, 3, 5):
        left = [i for i in everything if i != index]
        assert model.spline_.deletion_rise[index] == pytest.approx(rss(left) / rss(everything) - 1, rel=1e-6)
    records = model.anova()
    assert sum(record["share"] for record in records) == pytest.approx(1.0)
    first = records[0]
    members = [i for i in everything if tuple(f"x{j}" for j in basis.variables_of(i)) == first["variables"]]
    left = [i for i in everything if i not in members]
    effective = len(left) + 6.0 * (len(left) - 1) / 2
    assert first["gcv_without"] == pytest.approx(rss(left) / (600 * (1 - effective / 600) ** 2), rel=1e-6)
    part = B[:, members] @ model.spline_.coefficients[members]
    assert first["sd"] == pytest.approx(part.std(), rel=1e-6)


def test_importance_finds_the_variables_that_matter(model):
    for kind in ("gcv", "rss", "nsubsets"):
        importance = model.variable_importance(kind)
        assert importance[:5].min() > 2 * abs(importance[5])
    path = model.spline_.path
    everywhere_used = path.rss[0] - path.rss[len(model.spline_.basis) - 1]
    assert model.variable_importance("rss").max() <= everywhere_used * (1 + 1e-12)
    with pytest.raises(ValueError, match="kind must be"):
        model.variable_importance("gain")


@pytest.mark.parametrize("interaction", ["min", "product"])
def test_partial_dependence_equals_brute_force(data, interaction):
    X, y = data
    model = SplineRegressor(max_terms=31, max_degree=3, interaction=interaction).fit(X, y)
    for variable in (0, 1, 5):
        grid, values = model.partial_dependence(X, variable)
        expected = partial_dependence(model, X, [variable], method="brute", custom_values={variable: grid})
        np.testing.assert_allclose(values[:, 0], expected["average"][0], atol=1e-9)


def test_plot_has_a_panel_for_each_variable(model, data):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = model.plot_partial(data[0], [0, 2])
    assert [axis.get_xlabel() for axis in figure.axes if axis.get_visible()] == ["x0", "x2"]
    plt.close(figure)
    plt.close(model.plot_partial(data[0]))


def test_refined_knots_lower_the_error_and_keep_the_form(data):
    X, y = data
    plain = SplineRegressor(max_terms=31).fit(X, y)
    refined = SplineRegressor(max_terms=31, refine=True).fit(X, y)
    assert len(refined.spline_.basis) == len(plain.spline_.basis)
    assert np.sum((refined.predict(X) - y) ** 2) < np.sum((plain.predict(X) - y) ** 2)
    np.testing.assert_allclose(refined.network_(X), refined.spline_(X), atol=1e-9)
    assert "rise" in refined.summary()


def test_gradient_epochs_never_lose_on_the_rows_held_out(data):
    pytest.importorskip("torch")
    X, y = data
    model = SplineRegressor(max_terms=31, refine=5, random_state=0).fit(X, y)
    scores = [record["validation_score"] for record in model.refinement_]
    assert len(scores) == 6
    assert model.network_.dtype == np.float64
    same = np.allclose(model.network_(X), model.spline_(X))
    assert same == (scores[0] >= max(scores[1:]))
    with pytest.raises(ValueError, match="100 rows or more"):
        SplineRegressor(refine=5).fit(X[:50], y[:50])
    digits = load_iris(return_X_y=True)
    assert SplineClassifier(refine=3, random_state=0).fit(*digits).score(*digits) > 0.9
