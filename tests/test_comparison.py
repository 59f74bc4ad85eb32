"""Comparing constraints: the statistics, the equal budgets, resuming, and the report."""

import json
import math
import os
import re
import signal
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import wgan_cli
from models.artifact import load_artifact
from models.errors import UserError
from tests.registries import new_database
from tests.runs import draw_nothing
from tests.servers import WGAN
from training.engine.runs import TrainingRun
from training.lab.comparison import REPORT, compare
from training.lab.comparison.runs import MEASUREMENTS, Plan
from training.lab.comparison.statistics import mean_over_seeds, probability_lower, recommend
from training.lab.jobs import run_jobs
from training.presets import build_config
from training.reporting.pictures import surface

TINY = {
    "generator.width": 8,
    "generator.depth": 1,
    "critic.width": 8,
    "critic.depth": 2,
    "training.batch_size": 32,
    "evaluation.samples": 100,
}
KINDS = ["none", "weight_clipping"]


@pytest.fixture(autouse=True)
def undiagnosed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of each run's diagnosis is empty: its charts take as long as these short runs."""
    monkeypatch.setattr("training.run.findings_page", lambda title, findings: "")


def test_intervals_and_probabilities_are_students() -> None:
    rng = np.random.default_rng(0)
    for n, m in ((2, 2), (3, 5), (9, 4)):
        a, b = rng.normal(0, 1, n).tolist(), rng.normal(0.5, 3, m).tolist()
        welch = stats.ttest_ind(a, b, equal_var=False, alternative="less")
        assert probability_lower(a, b) == pytest.approx(1 - welch.pvalue)
        low, high = stats.t.interval(0.95, n - 1, np.mean(a), stats.sem(a))
        assert mean_over_seeds(a)[1:] == pytest.approx((low, high))
    assert probability_lower([1.0], [2.0, 3.0]) is None
    assert math.isnan(mean_over_seeds([1.0]).low)
    assert probability_lower([1.0, 1.0], [1.0, 1.0]) == 0.5


def test_a_recommendation_says_how_sure_it_is() -> None:
    clear = recommend({"a": [3.0, 3.1, 2.9], "b": [1.0, 1.1, 0.9]}, "w")
    assert (clear["constraint"], clear["over"]) == ("b", "a")
    assert clear["confidence"] > 0.99
    close = recommend({"a": [1.0, 3.0, 2.0], "b": [1.1, 2.9, 1.9], "c": [9.0, 9.0, 9.0]}, "w")
    assert close["over"] != "c"
    assert "do not decide" in close["reason"]
    assert "--seeds 3" in recommend({"a": [1.0], "b": [2.0]}, "w")["reason"]


def confidences(values: np.ndarray) -> np.ndarray:
    """How sure the recommendations are: ``(R, K, S)``, comparisons, constraints, seeds, to (R,)."""
    names = [str(kind) for kind in range(values.shape[1])]
    return np.array(
        [recommend(dict(zip(names, v, strict=True)), "w")["confidence"] for v in values]
    )


@pytest.mark.parametrize(("count", "seeds"), [(2, 3), (3, 3), (4, 3), (5, 3), (6, 3), (2, 5)])
@pytest.mark.parametrize("case", ["equal", "skewed", "two best"])
def test_equal_constraints_are_clearly_better_no_more_often_than_is_said(
    case: str, count: int, seeds: int
) -> None:
    """In 2,000 comparisons; the worst case is two equal ones that are far better than the rest."""
    rng, comparisons = np.random.default_rng(0), 2000
    values = rng.normal(size=(comparisons, count, seeds))
    if case == "skewed":
        values = np.exp(values / 2)
    if case == "two best":
        values[:, 2:] += 50
    found = confidences(values)
    for level in (0.5, 0.8, 0.9, 0.95, 0.99):
        # If the level holds, the count is above this with a probability below one in a thousand.
        most = stats.binom.isf(1e-3, comparisons, 1 - level)
        assert (found >= level).sum() <= most, (level, (found >= level).mean())
    if case == "two best":  # nor much less often, or real differences would be missed
        assert (found >= 0.9).mean() > 0.06
        assert (found >= 0.5).mean() > 0.44


@pytest.mark.parametrize("seeds", [3, 5])
def test_unequal_spreads_raise_false_recommendations_to_six_in_a_hundred(seeds: int) -> None:
    values = np.random.default_rng(2).normal(size=(4000, 2, seeds)) * [[1], [6]]
    assert (confidences(values) >= 0.95).sum() <= stats.binom.isf(1e-3, 4000, 0.06)


@pytest.mark.parametrize(
    ("count", "seeds", "lead", "least"),
    [(2, 3, 4, 0.8), (2, 5, 3, 0.9), (6, 3, 6, 0.9), (6, 5, 3, 0.85)],
)
def test_real_differences_are_seen(count: int, seeds: int, lead: float, least: float) -> None:
    """The best constraint leads by so many standard deviations between seeds."""
    values = np.random.default_rng(1).normal(size=(500, count, seeds))
    values[:, 0] -= lead
    assert (confidences(values) >= 0.95).mean() > least


def test_a_choice_must_beat_the_constraint_of_widest_spread_too() -> None:
    values = {"a": [1.0, 1.1, 0.9], "b": [3.0, 3.1, 2.9], "c": [0.0, 20.0, 1.0]}
    found = recommend(values, "w")
    assert (found["constraint"], found["over"]) == ("a", "c")
    assert found["confidence"] < 0.9
    assert recommend({k: values[k] for k in "ab"}, "w")["confidence"] > 0.99
    assert recommend({"a": [1.0, 1.0], "b": [1.0, 1.0]}, "w")["confidence"] == 0


def test_both_budgets_give_each_constraint_its_steps() -> None:
    configs = {kind: build_config("8gaussians", None, kind, {}) for kind in KINDS}
    each = {kind: config.training.num_critic_steps for kind, config in configs.items()}
    plan = Plan(configs, {"none": 0.01, "weight_clipping": 0.04}, 1000, 10.0)
    assert {k: plan.steps(k, "steps") for k in KINDS} == {k: 1000 // each[k] for k in KINDS}
    assert plan.steps("none", "seconds") == plan.steps("none", "steps")
    assert plan.steps("weight_clipping", "seconds") == 250 // each["weight_clipping"]


def test_jobs_run_once_and_over_processes(tmp_path: Path) -> None:
    said = list[str]()
    jobs = {"four": 4.0, "nine": 9.0}
    assert run_jobs(math.sqrt, jobs, tmp_path, 2, said.append) == {"four": 2.0, "nine": 3.0}
    assert len(said) == 2
    (tmp_path / "nine.json").write_text("7")  # what is there is believed
    jobs["bad"] = -1.0
    with pytest.raises(ValueError, match=r"math domain|nonnegative"):
        run_jobs(math.sqrt, jobs, tmp_path, 1, said.append)
    del jobs["bad"]
    assert run_jobs(math.sqrt, jobs, tmp_path, 1, said.append) == {"four": 2.0, "nine": 7}
    assert len(said) == 2


def test_a_comparison_is_fair_resumable_and_told_in_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_database(tmp_path))
    out, said, points = tmp_path / "compared", list[str](), str(tmp_path / "points.npy")
    np.save(points, np.random.default_rng(0).normal(size=(1000, 2)))
    kinds = ["weight_decay", "weight_clipping"]  # the first of which does not train together

    def run() -> dict[str, object]:
        return compare(
            points, kinds, 2, out, preset="8gaussians", steps=20, overrides=TINY, track=True,
            say=said.append,
        )  # fmt: skip

    summary = run()
    rows = {(row["constraint"], row["budget"]): row for row in summary["rows"]}  # type: ignore[attr-defined]
    assert len(rows) == 4
    at_steps = [rows[kind, "steps"]["critic_steps"] for kind in kinds]
    assert at_steps[0] == at_steps[1]
    for folder in (out / "runs").iterdir():
        model = load_artifact(folder / "artifact")
        answer = json.loads((out / "answers" / f"{folder.name}.json").read_text())
        value = model.run.results.figures["wasserstein_1"].value
        assert answer["figures"]["wasserstein_1"]["value"] == value
        steps = [row["step"] for row in answer["curve"]]
        assert len(steps) == min(MEASUREMENTS, answer["steps"])
        assert steps[-1] == answer["steps"]
        kind = model.run.constraint.kind
        assert model.run.provenance["critic_step"] == (
            "stacked" if kind == "weight_clipping" else "eager"
        )
        seconds = [row["seconds"] for row in answer["curve"]]
        assert seconds == sorted(seconds)
    refused = [line for line in said if "one by one" in line]
    assert len(refused) == len({row["steps"] for row in rows.values() if "decay" in str(row)})
    assert all(line.startswith("weight_decay-") for line in refused)
    assert "changes gradients" in refused[0]
    page = (out / REPORT).read_text()
    assert page.count("<svg") >= 4
    assert page.count("data:image/png;base64,") == 4  # samples and surfaces of two constraints
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "<script" not in page
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(drawing)

    from models import registry

    api = registry.client()
    (experiment,) = [e for e in api.search_experiments() if e.name == "wgan-foundry"]
    tracked = api.search_runs([experiment.experiment_id])
    assert {r.data.tags["comparison"] for r in tracked} == {"compared"}
    assert len(tracked) == len(list((out / "runs").iterdir()))
    assert registry.versions() == []

    before = {p: p.stat().st_mtime_ns for p in (out / "runs").rglob("*")}
    said.clear()
    assert run() == summary
    assert not [line for line in said if re.match(r"\d+/\d+ ", line)], "nothing ran again"
    assert {p: p.stat().st_mtime_ns for p in (out / "runs").rglob("*")} == before
    with pytest.raises(UserError, match="two different ones"):
        compare(points, ["none", "none"], 1, out, say=said.append)


def compared(out: Path, rate: float) -> int:
    told = {**TINY, "training.learning_rate": rate, "training.checkpoint_every": 2}
    settings = [part for key, value in told.items() for part in ("--set", f"{key}={value}")]
    command = ["compare", "--data", "8gaussians", "--constraints", "none,weight_clipping"]
    command += ["--seeds", "2", "--steps", "8", "--no-track", "--out", str(out)]
    return wgan_cli.main([*command, *settings])


def test_a_constraint_of_which_a_run_diverges_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It does so after its pace was measured; seed 1, and with it those that trained together."""
    sane = TrainingRun.require_sane

    def require_sane(run: TrainingRun, gap: float) -> None:
        training = run.config.training
        if (run.config.constraint.kind, training.seed, run.step) == ("none", 1, 2):
            gap = math.inf
        sane(run, gap)

    monkeypatch.setattr(TrainingRun, "require_sane", require_sane)
    draw_nothing(monkeypatch.setattr)  # words are looked at
    for _ in range(2):  # and when the same command is given again
        assert compared(tmp_path / "out", 1e-3) == 0
        said = capsys.readouterr()
        left_out = "left out: none (seed 1 diverged by step 2: the critic gap is inf"
        assert "recommended: weight_clipping: the only one of which no run diverged; " in said.out
        assert left_out in said.out
        assert "Traceback" not in said.err
    summary = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert {row["constraint"] for row in summary["rows"]} == {"weight_clipping"}
    assert list(summary["diverged"]) == ["none"]
    assert left_out in (tmp_path / "out" / REPORT).read_text()


def test_that_every_constraint_diverges_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--set", "training.divergence_gap=1e-9", "--set", "training.batch_size=32"]
    command = ["compare", "--data", "8gaussians", "--constraints", "none,weight_clipping"]
    assert wgan_cli.main([*command, "--no-track", *told, "--out", str(tmp_path / "out")]) == 1
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("error"))
    assert line.startswith("error: every constraint diverged: none (diverged by step ")
    assert "weight_clipping (diverged by step " in line


def test_mistakes_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ("compare", "--data", "8gaussians", "--constraints", "none,bjork", "--out", "x")
    for more, says in (
        ((), "bjorck"),
        (("--steps", "3", "--budget-seconds", "4"), "exclude"),
        (("--seeds", "0"), "--seeds"),
    ):
        assert wgan_cli.main([*common, *more]) == 2
        assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_surface_has_its_origin_at_the_bottom_left() -> None:
    low, high = np.array([0.0, 0.0]), np.array([1.0, 1.0])
    point = (np.array([[0.1, 0.9]]), (0, 0, 0))
    picture = surface(lambda p: p[:, 1], low, high, [point])
    assert picture[:5, :, 0].mean() > picture[-5:, :, 0].mean() + 50  # red above, blue below
    rows, columns = np.nonzero((picture == 0).all(axis=2))
    assert rows.mean() < 40
    assert columns.mean() < 40


def test_an_interruption_is_one_line_and_says_that_the_command_goes_on(tmp_path: Path) -> None:
    # What a shell starts in the background ignores SIGINT, and so does all that comes from it.
    command = ["env", "--default-signal=INT", WGAN, "compare", "--data", "8gaussians"]
    command += ["--constraints", ",".join(KINDS), "--jobs", "2"]
    command += ["--no-track", "--out", str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert process.stdout
        first = process.stdout.readline()
        assert first.startswith("1/"), first
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        rest = process.stdout.read()
    assert process.returncode == 75, rest
    assert "Traceback" not in rest
    assert rest.endswith("interrupted: the same command goes on from here\n")
