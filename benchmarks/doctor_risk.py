"""What the runs of `benchmarks.doctor` say: each finding's area, the risk's numbers, its score.

The risk is fitted to the fitting grid alone. Everything else is of the judging grid.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

from training.judging.doctor.checks import CHECKS
from training.judging.doctor.risk import MODEL, SCALES, Model, Term

Array = np.ndarray
Answers = Mapping[str, Mapping[str, Any]]
RESULTS = Path(__file__).with_name("results") / "doctor.json"
SHARES = (0.2, 0.6, 1.0)
"""Shares of the steps at which the doctor looks."""
MIN_AREA = 0.7
"""A finding that predicts less, on the fitting grid, has no part in the risk."""
RESAMPLES = 2000
BINS = 5


def of_grid(answers: Answers, grid: str, share: float) -> list[Mapping[str, Any]]:
    """Runs of a grid that the doctor saw at a share of their steps; others had diverged."""
    key = f"{share:g}"
    return [a for a in answers.values() if a["grid"] == grid and a["looks"].get(key)]


def fit(answers: Answers) -> list[Model]:
    """A logistic regression for each share, from the runs of the fitting grid.

    The penalty is scikit-learn's default. The findings are those that predict by themselves, less
    those that would lower the risk beside the others: each is larger when worse.
    """
    models = []
    for share in SHARES:
        runs = of_grid(answers, "fitting", share)
        areas = areas_of_findings(runs, share)
        names = [name for name in CHECKS if areas[name]["area"] >= MIN_AREA]
        failed = [run["failed"] for run in runs]
        while True:
            x, means, sds = design(runs, share, names)
            regression = LogisticRegression().fit(x, failed)
            weights = regression.coef_[0] / sds
            if weights.min() >= 0:
                break
            names.pop(int(weights.argmin()))
        terms = {
            name: Term(float(mean), float(weight))
            for name, mean, weight in zip(names, means, weights, strict=True)
        }
        models.append(Model(share, float(regression.intercept_[0]), terms))
    return models


def design(
    runs: list[Mapping[str, Any]], share: float, names: list[str]
) -> tuple[Array, Array, Array]:
    """Standardised findings ``(R, F)``, with their means and standard deviations ``(F,)``.

    A finding that does not apply to a run counts as the mean of those to which it applies.
    """
    looks = [run["looks"][f"{share:g}"] for run in runs]
    scaled = np.array(
        [[SCALES[name](look[name]) if name in look else np.nan for name in names] for look in looks]
    )
    means, sds = np.nanmean(scaled, axis=0), np.nanstd(scaled, axis=0)
    return np.nan_to_num((scaled - means) / sds), means, sds


def tried(answers: Answers, share: float, chosen: list[str]) -> dict[str, dict[str, float]]:
    """Other risks beside the chosen one, on the fitting grid alone.

    Each data set in turn is predicted from the runs on the others.
    """
    every = list(SCALES)
    candidates: dict[str, tuple[list[str], Any]] = {
        "chosen": (chosen, LogisticRegression()),
        "all findings": (every, LogisticRegression()),
        "forest of all findings": (
            every,
            RandomForestClassifier(400, min_samples_leaf=5, random_state=0),
        ),
        "worse_than_gaussian alone": (["worse_than_gaussian"], LogisticRegression()),
        "all but worse_than_gaussian": (
            [name for name in every if name != "worse_than_gaussian"],
            LogisticRegression(),
        ),
    }
    runs = of_grid(answers, "fitting", share)
    failed = np.array([run["failed"] for run in runs])
    sources = [run["data"] for run in runs]
    found = {}
    for label, (names, estimator) in candidates.items():
        x, _, _ = design(runs, share, names)
        risks = cross_val_predict(
            estimator, x, failed, groups=sources, cv=LeaveOneGroupOut(), method="predict_proba"
        )[:, 1]
        brier = float(((risks - failed) ** 2).mean())
        found[label] = {"area": area(risks[failed], risks[~failed]), "brier": brier}
    return found


def area(failing: Array, training: Array) -> float:
    """Probability that a failing run has the larger value; a tie counts half."""
    differences = failing[:, None] - training
    return float((differences > 0).mean() + (differences == 0).mean() / 2)


def with_interval(values: Array, failed: Array) -> dict[str, float]:
    """The area under the ROC curve, with a 95% interval from bootstrapped runs."""
    sides = values[failed], values[~failed]
    rng = np.random.default_rng(0)
    areas = [area(*(rng.choice(x, len(x)) for x in sides)) for _ in range(RESAMPLES)]
    low, high = np.quantile(areas, [0.025, 0.975])
    return {
        "failing": len(sides[0]),
        "training": len(sides[1]),
        "area": area(*sides),
        "low": float(low),
        "high": float(high),
    }


def areas_of_findings(runs: list[Mapping[str, Any]], share: float) -> dict[str, dict[str, float]]:
    """How well each finding, at a share of the steps, predicts which of the runs fail."""
    found = {}
    for name in CHECKS:
        pairs = [
            (run["looks"][f"{share:g}"][name], run["failed"])
            for run in runs
            if name in run["looks"][f"{share:g}"]
        ]
        values, failed = map(np.array, zip(*pairs, strict=True))
        found[name] = with_interval(values, failed)
    return found


def risk_summary(answers: Answers, model: Model) -> dict[str, Any]:
    """How well the risk predicts which judging runs fail, and whether its numbers are true."""
    runs = of_grid(answers, "judging", model.share)
    risks = np.array([model.probability(run["looks"][f"{model.share:g}"]) for run in runs])
    failed = np.array([run["failed"] for run in runs])
    sources = np.array([run["data"] for run in runs])
    summary: dict[str, Any] = with_interval(risks, failed)
    summary["brier"] = float(((risks - failed) ** 2).mean())
    summary["brier_of_base_rate"] = float(failed.mean() * (1 - failed.mean()))
    edges = np.linspace(0, 1, BINS + 1)
    bins = np.clip(np.digitize(risks, edges) - 1, 0, BINS - 1)
    summary["bins"] = [
        {
            "from": float(edges[b]),
            "to": float(edges[b + 1]),
            "runs": int((bins == b).sum()),
            "mean_risk": float(risks[bins == b].mean()),
            "failed": float(failed[bins == b].mean()),
        }
        for b in range(BINS)
        if (bins == b).any()
    ]
    summary["data"] = {
        source: {
            "failing": int(failed[sources == source].sum()),
            "training": int((~failed[sources == source]).sum()),
            "mean_risk": float(risks[sources == source].mean()),
            "area": area(
                risks[sources == source][failed[sources == source]],
                risks[sources == source][~failed[sources == source]],
            ),
        }
        for source in dict.fromkeys(sources)
    }
    return summary


def summary(answers: Answers, models: list[Model]) -> dict[str, Any]:
    """Everything but the answers themselves, by the names in the results' file."""
    grids = {}
    for grid in ("fitting", "judging"):
        failed = [answer["failed"] for answer in answers.values() if answer["grid"] == grid]
        grids[grid] = {"failed": sum(failed), "trained": len(failed) - sum(failed)}
    return {
        "grids": grids,
        "findings": {
            f"{share:g}": areas_of_findings(of_grid(answers, "judging", share), share)
            for share in SHARES
        },
        "risk": {f"{model.share:g}": risk_summary(answers, model) for model in models},
        "tried": {
            f"{model.share:g}": tried(answers, model.share, list(model.terms)) for model in models
        },
    }


def write_results(answers: Answers) -> None:
    """Fit the risk, write ``risk.json`` and the results, and print what was found."""
    models = fit(answers)
    document = [
        m._asdict() | {"terms": {name: term._asdict() for name, term in m.terms.items()}}
        for m in models
    ]
    MODEL.write_text(json.dumps(document, indent=1) + "\n")
    text = json.dumps(summary(answers, models), indent=1)
    print(text)
    rows = (f"  {json.dumps(name)}: {json.dumps(answer)}" for name, answer in answers.items())
    text = text.removesuffix("\n}") + ',\n "answers": {\n' + ",\n".join(rows) + "\n }\n}\n"
    RESULTS.write_text(text)


def main() -> None:
    """Fit and sum up again what is in the results."""
    write_results(json.loads(RESULTS.read_text())["answers"])


if __name__ == "__main__":
    main()
