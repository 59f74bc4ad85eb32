"""Pages and the model card: what is said, and that names stay names."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from jinja2 import UndefinedError

from models.images import encode_png
from models.record import Chart, Figure, Finding, Line, Marginal, Run
from tests.artifacts import make_artifact
from training.lab.study.page import Part
from training.reporting.pages import TEMPLATES, model_card, render
from training.reporting.table_report import ColumnPart

HOSTILE = "<script>alert('&\"')</script>"
CHART = Chart(title=HOSTILE, x_label=HOSTILE, y_label=HOSTILE, lines=[
    Line(name=HOSTILE, x=[1, 2], y=[1, 2]), Line(name=f"b{HOSTILE}", x=[1, 2], y=[2, 1]),
])  # fmt: skip
FIGURE = Figure(value=0.5, floor=None, interval=(0.4, 0.6), n=5, better="higher")
MARGINAL = Marginal(
    name=HOSTILE, kind="category", score=0.5, names=[HOSTILE], real=[1], generated=[1],
    real_missing=0.1, generated_missing=0.2,
)  # fmt: skip
PNG = encode_png(np.zeros((2, 2, 1), np.uint8))


def finding(**changes: object) -> Finding:
    values: dict[str, object] = {
        "name": "low_diversity", "value": 0.4444, "threshold": 0.3, "present": True,
        "severity": "warning", "evidence": HOSTILE, "remedy": HOSTILE, "chart": CHART, **changes,
    }  # fmt: skip
    return Finding.model_validate(values)


def pages(surfaces: dict[str, bytes] | None = None) -> dict[str, str]:
    parts = [
        Part(HOSTILE), Part(HOSTILE, 2), Part(rows=((HOSTILE, "b"), ("1", HOSTILE))),
        Part(HOSTILE, chart=CHART, file="f"),
    ]  # fmt: skip
    return {
        "diagnosis": render(
            "diagnosis.html.j2",
            title=HOSTILE,
            findings=[finding(), finding(chart=None, present=False)],
            meanings={"low_diversity": HOSTILE},
        ),
        "comparison": render(
            "comparison.html.j2",
            title=HOSTILE,
            reason=HOSTILE,
            seeds=2,
            critic_steps=100,
            seconds=1.23456,
            header=[HOSTILE],
            rows=[[HOSTILE]],
            charts=[(CHART, HOSTILE)],
            findings=[[HOSTILE]],
            samples={HOSTILE: PNG},
            surfaces={HOSTILE: PNG} if surfaces is None else surfaces,
        ),
        "progress": render(
            "progress.html.j2", title=HOSTILE, steps=9, best=3, chart=CHART, samples=PNG
        ),
        "study": render("study.html.j2", title=HOSTILE, parts=parts),
        "table_report": render(
            "table_report.html.j2",
            title=HOSTILE,
            run=SimpleNamespace(config=SimpleNamespace(name=HOSTILE), provenance={}),
            card=SimpleNamespace(name=HOSTILE, training_count=9, heldout_count=5),
            n=5,
            figures={HOSTILE: FIGURE},
            meanings={HOSTILE: HOSTILE},
            columns=[ColumnPart(MARGINAL, "")],
            pairs=[(HOSTILE, HOSTILE, 0.5, 0.1, 0.2)],
            pair_count=1,
            heat_maps=[],
        ),
        "tuning": render(
            "tuning.html.j2",
            title=HOSTILE,
            headline=HOSTILE,
            command=HOSTILE,
            judged=[HOSTILE],
            samples=PNG,
            chart=CHART,
            header=[HOSTILE],
            rows=[[HOSTILE]],
        ),
        "w1": render(
            "w1.html.j2",
            title=HOSTILE,
            verdict=HOSTILE,
            cautions=[HOSTILE],
            a=HOSTILE,
            b=HOSTILE,
            changes=(HOSTILE, [[HOSTILE, HOSTILE]]),
            figures=[[HOSTILE, HOSTILE]],
            scores=(CHART, HOSTILE),
            chance=True,
            bars="",
            bars_caption=HOSTILE,
            charts=[(CHART, HOSTILE)],
            pictures=[(PNG, HOSTILE, 100)],
            tables=[(HOSTILE, [HOSTILE], [[HOSTILE]])],
            items=[(PNG, HOSTILE, 100)],
        ),
    }


def test_a_name_that_looks_like_markup_stays_a_name() -> None:
    assert set(pages()) == {p.name.split(".")[0] for p in TEMPLATES.glob("*.html.j2")} - {
        "page", "parts", "study_part"
    }, "every page is tested"  # fmt: skip
    for name, page in pages().items():
        assert "<script" not in page, name
        assert page.count("&lt;script&gt;") > 5, name
        assert page.startswith('<!doctype html>\n<html lang="en">')
        assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_diagnosis_shows_every_finding() -> None:
    page = pages()["diagnosis"]
    assert page.count("<tr>") == 3
    assert "<td>0.444</td><td>0.3</td>" in page
    assert page.count("<td>warning</td>") == 1
    assert page.count("<td>not present</td>") == 1
    assert page.count("<svg") == 1


def test_a_comparison_has_surfaces_only_in_the_plane() -> None:
    page = pages()["comparison"]
    assert page.count("data:image/png;base64,") == 2
    assert "1.23 seconds" in page
    assert "Critic surfaces" in page
    page = pages(surfaces={})["comparison"]
    assert page.count("data:image/png;base64,") == 1
    assert "Critic surfaces" not in page


def test_a_template_gets_all_that_it_names() -> None:
    with pytest.raises(UndefinedError, match="title"):
        render("study.html.j2", parts=[])


def test_a_model_card_is_markdown_and_not_escaped(tmp_path: Path) -> None:
    record = json.loads((make_artifact(tmp_path / "a") / "run.json").read_text())
    record["engine"] |= {"mean_error": 0.01234, "max_error": 1.5}
    record["constraint"]["guarantee"] = "a slope <= 1 & more"
    record["lipschitz"] = {
        "sampled": 1.23456,
        "certified": None,
        "reason": "it's none",
        "gradient_norm": {
            "real": {"mean": 1.0, "max": 2.0, "quantiles": {"0.5": 0.98765}},
        },
    }
    card = model_card(Run.model_validate(record))
    assert card.startswith("# tiny\n\nA Wasserstein GAN trained on **digits** under")
    assert "- What it guarantees: a slope <= 1 & more\n- Data: 10 items of shape (1, 8, 8)" in card
    assert "| precision | 0.5 | 0.4 to 0.6 | 0.9 | 10 | higher |\n" in card
    assert "|---|---|---|---|\n| real | 1.000 | 0.988 | 2.000 |\n\nIts Lipschitz" in card
    assert "is at least 1.235 (found by ascent); no upper bound is certified: it's none.\n" in card
    assert "- **low_diversity** (warning): coverage is 0.5. train longer.\n" in card
    assert "by 0.012 grey levels on average, 1.5 at most.\n" in card
    assert "\n\n\n" not in card
    assert not card.endswith("\n\n")
    record["findings"] = []
    record["lipschitz"]["certified"] = 3.0
    card = model_card(Run.model_validate(record))
    assert "(found by ascent) and at most 3 (certified).\n" in card
    record["lipschitz"]["certified"] = 3.0001  # a bound is rounded up
    assert "and at most 3.001 (certified).\n" in model_card(Run.model_validate(record))
    assert "## Findings" not in card
