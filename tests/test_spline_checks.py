from sklearn.utils.estimator_checks import parametrize_with_checks

from liftopt import SplineClassifier, SplineRegressor


@parametrize_with_checks(
    [
        SplineRegressor(),
        SplineRegressor(max_degree=1, interaction="product"),
        SplineClassifier(),
        SplineClassifier(max_degree=2, pruning="cv", cv=3),
    ]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)
