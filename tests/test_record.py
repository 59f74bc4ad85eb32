"""The record of a run: what is written, what is said of it, and what is left out."""

from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from models import record
from models.artifact import load_artifact
from models.errors import ShapeError
from models.lipschitz import LipschitzBounds
from models.record import (
    Chart,
    DataCard,
    Engine,
    Figure,
    Marginal,
    PrivacyCard,
    Results,
    Run,
    in_range,
    rounded_up,
    without_false_guarantee,
    without_leaks,
)
from models.values import OWN
from tests.artifacts import make_artifact
from tests.mixed import people_schema


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = make_artifact(tmp_path_factory.mktemp("record") / "artifact", "vector")
    return load_artifact(folder).run


def changed(run: Run, **own: Any) -> Run:
    return run.model_copy(update={"data": run.data.model_copy(update=own)})


RECORDS = [
    it
    for it in vars(record).values()
    if isinstance(it, type) and issubclass(it, BaseModel) and it.__module__ == record.__name__
]


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_stays_as_it_was_written(kind: type[BaseModel]) -> None:
    one = kind.model_construct()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(one, next(iter(kind.model_fields)), None)


def test_what_is_newer_than_a_record_is_written_only_if_it_says_something(run: Run) -> None:
    told: dict[str, Any] = {
        "not_read": {".txt": 2},
        "validation_count": 3,
        "layout": "nhwc",
        "range": "0..1",
        "dtype": "float64",
        "table": people_schema(),
    }
    plain, full = run.data.model_dump(mode="json"), changed(run, **told).data
    written = full.model_dump(mode="json")
    assert not told.keys() & plain.keys()
    assert told.keys() <= written.keys()
    assert DataCard.model_validate(written) == full
    assert DataCard.model_validate(plain) == run.data
    assert (run.data.skipped, run.data.validation_count) == (0, 0)
    figure = Figure(value=1, floor=None, interval=(0, 2), n=9, better="lower")
    assert figure.model_dump().keys().isdisjoint({"baseline", "of_class"})
    figure = figure.model_copy(update={"baseline": 2.0, "of_class": "a"})
    assert Figure.model_validate(figure.model_dump()) == figure
    likeness = {"name": "x", "kind": "number", "score": 1, "names": ["1"], "real": [1]}
    shares = {"generated": [1], "real_missing": 0, "generated_missing": 0}
    marginal = Marginal.model_validate({**likeness, **shares})
    assert run.model_dump(mode="json").keys().isdisjoint({"privacy", "marginals"})
    more = run.model_copy(update={"privacy": private([]), "marginals": [marginal]})
    assert Run.model_validate_json(more.model_dump_json()) == more
    assert run.schema_version == 1
    with pytest.raises(ValidationError, match="schema_version"):
        Run.model_validate({**run.model_dump(), "schema_version": 2})
    chart = Chart(title="a", x_label="x", y_label="y", lines=[])
    assert (chart.bars, chart.log_x, chart.log_y) == (False, False, False)
    assert Engine(chunk=1).chunk == 1
    with pytest.raises(ValidationError, match="chunk"):
        Engine(chunk=0)


def test_parts_are_those_of_the_table(run: Run) -> None:
    schema = people_schema()
    assert changed(run, table=schema).data.parts == schema.parts
    assert run.data.parts == []
    counted = changed(run, classes=["a", "b", "c"], class_counts=[2, 0, 1]).data
    assert counted.trained_classes == ["a", "c"]
    with pytest.raises(ValueError, match="shorter"):
        _ = changed(run, classes=["a", "b"], class_counts=[2]).data.trained_classes


def test_images_lie_in_the_range_of_their_data_but_for_rounding(run: Run) -> None:
    """The slack is a millionth of the range, which float32 has to spare."""
    shape = {"kind": "image", "shape": (1, 1, 2), "offset": [2.0], "scale": [2.0]}
    ranged, own = (changed(run, **shape, range=r).data for r in ("0..4", OWN))
    for low, high in ((0, 4), (-3.9e-6, 4), (0, 4 + 3.9e-6), (1, 2)):
        images = np.array([low, high]).reshape(1, 1, 2, 1)
        assert in_range(images, ranged) is images
    for low, high in ((-4.1e-6, 4), (0, 4 + 4.1e-6), (-1, 5), (5, 6), (-9, -8)):
        images = np.array([low, high]).reshape(1, 1, 2, 1)
        with pytest.raises(ShapeError, match="numbers from 0 to 4 here"):
            in_range(images, ranged)
        assert in_range(images, own) is images
        assert in_range(images, run.data) is images
    far = changed(run, **shape, range="1000..1004").data  # of its span, and not of its size
    with pytest.raises(ShapeError, match="numbers from 1000 to 1004"):
        in_range(np.array([1000, 1004 + 4.1e-6]).reshape(1, 1, 2, 1), far)
    levels = np.array([0, 255], np.uint8).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(in_range(levels, ranged).ravel(), [0, 4], atol=1e-6)
    assert in_range(levels, run.data) is levels
    with pytest.raises(ShapeError, match=r"256 grey levels \(uint8\) are not"):
        in_range(levels, own)


@pytest.mark.parametrize(
    ("value", "said"),
    [(1.00000297, "1.001"), (8.25, "8.25"), (19552.3, "19560"), (1.0, "1"), (0.12345, "0.1235")],
)
def test_four_digits_are_rounded_up(value: float, said: str) -> None:
    assert rounded_up(value) == said


@pytest.mark.parametrize(
    ("promise", "largest"),
    [
        ("the critic's slope is at most 1 with activations of slope 1", 1.01),
        ("the critic's slope is then near 1 at most", 1.1),
    ],
)
def test_a_promise_of_a_former_version_is_kept_where_it_is_true(
    run: Run, promise: str, largest: float
) -> None:
    said = run.model_copy(
        update={"constraint": run.constraint.model_copy(update={"guarantee": f"So {promise}."})}
    )
    for certified, holds in ((largest, True), (largest + 0.001, False), (0.5, True), (None, False)):
        bounds = LipschitzBounds(certified=certified, reason=None if certified else "unknown")
        found = without_false_guarantee(said.model_copy(update={"lipschitz": bounds}))
        assert (promise in found.constraint.guarantee) == holds
    assert without_false_guarantee(run) is run


def private(public: list[str]) -> PrivacyCard:
    return PrivacyCard(
        epsilon=3.00004,
        delta=1e-5,
        noise_multiplier=1.23456,
        clip_norm=1,
        sampling_rate=0.015625,
        steps=40,
        public=public,
    )


def test_what_privacy_cost_is_said_in_one_sentence_and_never_too_low() -> None:
    said = "epsilon 3.001 at delta 1e-05, for one training row (40 critic steps, noise multiplier "
    assert private([]).in_words == f"{said}1.235, sampling rate 0.01562)"
    public = private(["schema", "figures"]).in_words
    assert public == f"{said}1.235, sampling rate 0.01562; declared public: schema, figures)"


def test_what_no_noise_hides_is_left_out(run: Run) -> None:
    full = run.model_copy(
        update={
            "lipschitz": LipschitzBounds(certified=2.0, sampled=1.0),
            "history": [{"step": 1.0}],
            "marginals": [Marginal.model_construct(name="x")],
        }
    )
    assert without_leaks(full) is full
    declared = without_leaks(full.model_copy(update={"privacy": private(["figures"])}))
    assert declared.data.sha256 == ""
    assert declared.model_copy(update={"data": full.data, "privacy": None}) == full
    hidden = without_leaks(full.model_copy(update={"privacy": private(["schema"])}))
    assert hidden.results == Results(extractor=None, figures={})
    assert hidden.lipschitz == LipschitzBounds(certified=2.0)
    assert (hidden.findings, hidden.history, hidden.marginals) == ([], [], [])
