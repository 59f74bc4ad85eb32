"""What generated rows are good for: a model learns from them, and another tells them from real."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata

from training.judging.copying import membership
from training.judging.intervals import half_sample_margins
from training.judging.tables.rows import is_missing, is_number

Array = np.ndarray
MAX_CATEGORIES = 255
"""Categories, at most, that the trees split as such; the numbers of more are split by size."""
MAX_CLASSES = 10
"""Classes of a target that are told apart: the most frequent, and all others as one."""


class Reading(NamedTuple):
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float


def utility(train: Array, test: Array, target: str) -> Reading | None:
    """How well a model predicts a column of real rows that learned from other rows: TSTR.

    Trained on generated rows and tested on held-out real ones (Esteban et al. 2017, section 4.2);
    with real training rows it is TRTR, the floor. The models are scikit-learn's histogram gradient
    boosting at its defaults, seed 0. The interval is for the choice of the rows tested on.

    Args:
        train: rows, as `training.judging.tables.rows.comparable` makes them.
        test: real rows.
        target: field that is predicted from all others. Rows without a value there are left out.

    Returns:
        R2 for a column of numbers. For categories the area under the ROC curve of each class
        against all others, in the mean over the rows tested on; 0.5 if only one class was learned.
        None if no test tells anything: too few values, or all the same.
    """
    train, test = (rows[~is_missing(rows[target])] for rows in (train, test))
    truth = test[target]
    if len(truth) < 4 or (truth == truth[0]).all():
        return None
    score = _r2 if is_number(test, target) else _area
    if score is _area:
        names, counts = np.unique(truth, return_counts=True)
        kept = names[np.argsort(-counts, kind="stable")[: MAX_CLASSES - 1]]
        if len(names) <= MAX_CLASSES:
            kept = names
        answers, truth = (
            np.where(np.isin(x, kept), np.searchsorted(np.sort(kept), x), len(kept))
            for x in (train[target], truth)
        )
    else:
        answers = train[target]
    predicted = _predict(_inputs(train, target), answers, _inputs(test, target), score is _area)
    points = np.column_stack([truth, predicted])
    value = score(points)
    if value is None:
        return None

    def metric(real: Array, fake: Array) -> dict[str, float]:
        found = score(fake)
        return {"": value if found is None else found}

    margin = half_sample_margins(metric, points, points)[""]
    return Reading(value, value - margin, value + margin)


def detection(real: Array, fake: Array) -> Reading:
    """How well a classifier tells generated rows from real ones: a classifier two-sample test.

    Half of the rows train it, the other half are scored (Lopez-Paz & Oquab 2017), by scikit-learn's
    histogram gradient boosting. The interval is DeLong's.

    Args:
        real: rows, as `training.judging.tables.rows.comparable` makes them.
        fake: as many.

    Returns:
        Area under the ROC curve: 0.5 if it tells nothing, 1 if it tells all.
    """
    n = min(len(real), len(fake)) // 2
    train = np.concatenate([real[:n], fake[:n]])
    answers = np.repeat([0, 1], n)
    test = np.concatenate([real[n : 2 * n], fake[n : 2 * n]])
    scores = _predict(_inputs(train), answers, _inputs(test), is_class=True)[:, 1]
    found = membership(scores[n:], scores[:n])
    return Reading(found.auroc, found.low, found.high)


def _inputs(rows: Array, target: str | None = None) -> tuple[Array, list[bool]]:
    """Columns without the target as float64 ``(N, C)``, and which of them are categories."""
    names = [name for name in rows.dtype.names or () if name != target]
    values = np.column_stack(
        [np.zeros((len(rows), 0)), *(rows[n].astype(np.float64) for n in names)]
    )
    for i, name in enumerate(names):
        values[is_missing(rows[name]), i] = np.nan
    return values, [not is_number(rows, name) for name in names]


def _predict(
    train: tuple[Array, list[bool]],
    answers: Array,
    test: tuple[Array, list[bool]],
    is_class: bool,
) -> Array:
    """Predictions for the test's rows: ``(N,)`` numbers, or the shares of classes ``(N, K)``."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    values, are_categories = train
    with np.errstate(invalid="ignore"):
        few = np.nanmax(np.concatenate([values, test[0], np.zeros((1, values.shape[1]))]), axis=0)
    mask = np.array(are_categories, bool) & (few < MAX_CATEGORIES)
    settings: dict[str, Any] = {"categorical_features": mask, "random_state": 0}
    if not is_class:
        return HistGradientBoostingRegressor(**settings).fit(values, answers).predict(test[0])
    classes = int(answers.max()) + 1 if len(answers) else 1
    shares = np.zeros((len(test[0]), classes))
    if len(np.unique(answers)) > 1:
        model = HistGradientBoostingClassifier(**settings).fit(values, answers)
        shares[:, model.classes_] = model.predict_proba(test[0])
    return shares


def _r2(points: Array) -> float | None:
    """R2 of predictions: ``(N, 2)``, the truth first; None if the truth does not vary."""
    truth, predicted = points.T
    spread = ((truth - truth.mean()) ** 2).sum()
    return float(1 - ((truth - predicted) ** 2).sum() / spread) if spread else None


def _area(points: Array) -> float | None:
    """Mean area under the ROC curves of classes: ``(N, 1 + K)``, the true class first."""
    truth, shares = points[:, 0], points[:, 1:]
    areas, weights = list[float](), list[int]()
    for label in np.unique(truth):
        is_it = truth == label
        n = int(is_it.sum())
        if n == len(truth):
            return None
        share = shares[:, int(label)] if label < shares.shape[1] else np.zeros(len(truth))
        wins = rankdata(share)[is_it].sum() - n * (n + 1) / 2
        areas.append(wins / (n * (len(truth) - n)))
        weights.append(n)
    return float(np.average(areas, weights=weights))
