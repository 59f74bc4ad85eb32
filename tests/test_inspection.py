"""`wgan data inspect`: the card, the picture and the problems found."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageColor

from models.config import DataConfig
from models.images import MARGIN
from tests.artifacts import tiny_config
from tests.command_line import called
from tests.runs import trained
from tests.test_cli import wgan
from tests.test_sources import encoded, photos, to_folder
from training.data.dataset import Dataset, load_data
from training.data.inspection import in_lines, problems
from training.reporting import pictures
from training.reporting.preview import data_picture

pytestmark = pytest.mark.usefixtures("charts_undrawn")

RNG = np.random.default_rng(3)
ONE_STEP = {"steps": 1, "critic_step": "eager"}  # capturing takes longer


@pytest.fixture(autouse=True)
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WGAN_CACHE", str(tmp_path / "cache"))


def load(source: Path, **settings: object) -> Dataset:
    return load_data(DataConfig(source=str(source), **settings))


def test_problems_of_images(tmp_path: Path) -> None:
    pixels = photos(300, 8, 8, 3)
    blank = np.full((8, 8, 3), 7, np.uint8)
    files = {f"many/{i}.png": encoded(p) for i, p in enumerate(pixels)}
    files |= {f"few/{i}.png": encoded(p) for i, p in enumerate(pixels[:5])}
    files |= {"few/blank.png": encoded(blank), "few/cut.png": encoded(blank)[:50]}
    found = "\n".join(problems(load(to_folder(files, tmp_path / "set"))))
    for says in (
        "skipped few/cut.png",
        "only 306 items",
        "5 items are exact duplicates",
        "class 'few' has 6 items",
        "'many' is over 10 times as frequent as 'few'",
        "1 images are of one colour",
    ):
        assert says in found
    assert len(found.splitlines()) == 6


def test_good_data_has_no_problems(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", RNG.integers(0, 256, (1500, 8, 8), np.uint8))
    assert problems(load(tmp_path / "a.npy")) == []
    np.save(tmp_path / "v.npy", RNG.standard_normal((1500, 3)))
    assert problems(load(tmp_path / "v.npy")) == []


def test_sizes_that_no_network_takes_are_told(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", RNG.integers(0, 256, (1500, 6, 9, 1), np.uint8))
    assert problems(load(tmp_path / "a.npy")) == [
        "images are 9x6 pixels; networks take sides of 8 to 256: set data.size to one of these, "
        "such as data.size=64"
    ]


def test_problems_of_vectors(tmp_path: Path) -> None:
    far = RNG.standard_normal(1500)
    far[7] = 1e6
    columns = {
        "good": RNG.standard_normal(1500),
        "constant": np.full(1500, 5.0),
        "date": 1.7e9 + 1e4 * RNG.standard_normal(1500),
        "second": 1.7e9 + RNG.standard_normal(1500),
        "beyond": 1.7e18 + RNG.integers(0, 100, 1500),
        "wide": np.exp(20 * RNG.standard_normal(1500)),
        "outlier": far,
        "kind": RNG.integers(0, 3, 1500),
    }
    np.save(tmp_path / "t.npy", np.stack(list(columns.values()), axis=1))
    found = problems(load(tmp_path / "t.npy"))
    says = [
        "'x2' is always 5",
        "'x5' is always 1.7e+18 in float64",
        "'x6' has 1500 different values, of which networks tell",
        "'x6' has ",
        "'x7' has 1 values over 20 interquartile ranges",
        "'x8' has only 3 different values",
    ]
    assert len(found) == len(says)
    for line in says:
        assert any(line in f for f in found)


def mixed(count: int = 1500) -> pd.DataFrame:
    """A table with a problem in most columns."""
    return pd.DataFrame(
        {
            "Unnamed: 0": np.arange(count),
            "good": RNG.permutation(count) / 100,
            "kind": RNG.choice(["a", "b"], count),
            "constant": 5.0,
            "id": RNG.permutation(count) + 10**9,
            "comment": [f"{x:x} is what I think" for x in RNG.integers(0, 2**60, count)],
            "again": 0.0,
            "mixed": np.where(
                RNG.random(count) < 0.9, RNG.integers(0, 9, count).astype(str), "unclear"
            ),
            "nothing": None,
        }
    ).assign(again=lambda frame: frame["good"])


def test_all_problems_of_a_table_are_said_at_once(tmp_path: Path) -> None:
    mixed().to_csv(tmp_path / "t.csv", index=False)
    found = problems(load(tmp_path / "t.csv"))
    says = [
        "'Unnamed: 0': left out: the number or name of the row",
        "'constant': always 5",
        "'id': a different whole number in each row: made anew",
        "'comment': left out: 1500 different texts",
        "'again': equal to column 'good'",
        "and 1[0-9][0-9] texts such as 'unclear', taken as categories",
        "'nothing': always missing",
    ]
    assert len(found) == len(says)
    for line in says:
        assert any(re.search(line, f) for f in found), line


def test_zero_is_an_end_and_a_value() -> None:
    column = {"kind": "integer", "type": "int64", "missing": 0, "decimals": 0, "spikes": []}
    lines = in_lines(
        [
            {"name": "nights", **column, "low": 0, "high": 9},
            {"name": "year", "kind": "constant", "type": "int64", "missing": 0, "value": 0},
        ]
    )
    assert lines[0].endswith("from 0, to 9")
    assert lines[1].endswith("always 0")


def test_inspect_shows_each_column(tmp_path: Path) -> None:
    mixed().to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "columns.yaml").write_text("comment: {kind: category, max_categories: 3}\n")
    told = ("--set", "data.columns=columns.yaml", "--set", "data.columns.good.low=-9")
    done = called("data", "inspect", "t.csv", *told, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    columns = {column.pop("name"): column for column in answer["columns"]}
    assert columns["good"] == {
        "kind": "number", "type": "double", "missing": 0, "low": -9, "decimals": 2, "spikes": [],
        "high": columns["good"]["high"],
    }  # fmt: skip
    assert columns["comment"]["others"] == 1497
    assert len(columns["comment"]["categories"]) == 3
    assert columns["Unnamed: 0"] == {"kind": "left_out", "reason": "the number or name of the row"}
    assert columns["id"]["new"] == "1000001500 and so on"
    assert "picture" not in answer
    assert {file.name for file in tmp_path.iterdir()} == {"t.csv", "columns.yaml"}
    said = called("data", "inspect", "t.csv", cwd=tmp_path).stdout.splitlines()
    line = next(line for line in said if line.startswith("good"))
    assert line.split()[:3] == ["good", "number", "double"]
    assert "2 decimals" in line
    assert sum(line.startswith("problem: column") for line in said) == 7


def test_the_picture_of_a_labelled_set_has_a_row_for_each_class(tmp_path: Path) -> None:
    pixels = photos(300, 32, 32, 3)
    files = {f"{i % 3}/{i}.png": encoded(p) for i, p in enumerate(pixels)}
    (tmp_path / "p.png").write_bytes(data_picture(load(to_folder(files, tmp_path / "set"))))
    with Image.open(tmp_path / "p.png") as image:
        sheet = np.asarray(image)
    side = 32 + MARGIN
    assert sheet.shape == (3 * side + MARGIN, 8 * side + MARGIN, 3)
    known = {p.tobytes(): i % 3 for i, p in enumerate(pixels)}
    for row in range(3):
        for column in range(8):
            top, left = MARGIN + row * side, MARGIN + column * side
            assert known[sheet[top : top + 32, left : left + 32].tobytes()] == row


def test_a_histogram_is_as_high_as_its_bins() -> None:
    """A column of two values, one three times as frequent: two bars, one a third as high."""
    column = np.repeat([0.0, 1.0], [300, 100])[:, None]
    sheet = pictures.marginals(["a"], column)
    width, height = pictures.PANEL
    assert sheet.shape == (height, width, 3)
    bars = (sheet == ImageColor.getrgb(pictures.REAL_COLOUR)).all(axis=2).sum(axis=0)
    heights = bars[bars > 0]
    assert heights.max() / heights.min() == pytest.approx(3, rel=0.1)
    first, last = np.flatnonzero(bars)[[0, -1]]
    assert bars[first] == heights.max()
    assert bars[last] == heights.min()


def test_correlations_are_drawn_in_their_colours() -> None:
    x = RNG.standard_normal((500, 1))
    sheet = pictures.marginals(["a", "b"], np.hstack([x, x]), np.hstack([x, -x]))
    width, height = pictures.PANEL
    real, fake = (sheet[:, i * width : (i + 1) * width] for i in (2, 3))
    side = height - pictures.TITLE - pictures.NUMBERS
    middle = (pictures.TITLE + side // 4, width // 2 + side // 4)  # above the diagonal
    assert real[middle].tolist() == [255, 0, 0]
    assert fake[middle].tolist() == [0, 0, 255]


def test_inspect_on_the_command_line(tmp_path: Path) -> None:
    files = {f"{i}.png": encoded(p) for i, p in enumerate(photos(150, 20, 30, 3))}
    files |= {f"bad{i}.png": b"" for i in range(50)}
    to_folder(files, tmp_path / "photos")
    picture = tmp_path / "drawn" / "photos.png"
    inspect = ("data", "inspect", ".", "--size", 8, "--json", "--out", picture)
    done = wgan(*inspect, cwd=tmp_path / "photos")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["card"]["shape"] == [3, 8, 8]
    assert found["card"]["skipped"] == 50
    assert sum(p.startswith("skipped bad") for p in found["problems"]) == 50
    with Image.open(found["picture"]) as image:
        assert image.format == "PNG"
    said = called("data", "inspect", "8gaussians", "--out", "x/toy.png", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert "picture: x/toy.png" in said.stdout
    assert (tmp_path / "x" / "toy.png").exists()
    for arguments, says in (
        (("nowhere",), "nor a built-in"),
        (("photos", "--size", 2), "data.size"),
        (("photos", "--size", 8, "--out", "a.jpg"), ".png"),
    ):
        mistake = called("data", "inspect", *arguments, cwd=tmp_path)
        assert mistake.returncode == 2
        assert says in mistake.stderr
        assert len(mistake.stderr.splitlines()) == 1


def test_training_says_which_columns_networks_cannot_tell_apart(tmp_path: Path) -> None:
    columns = {
        "second": 1.7e9 + RNG.integers(0, 100, 200),
        "constant": np.full(200, 1.7e9),
        "wide": np.exp(20 * RNG.standard_normal(200)),
        "value": RNG.standard_normal(200),
    }
    np.save(tmp_path / "t.npy", np.stack(list(columns.values()), axis=1))
    config = tiny_config("table", data={"source": str(tmp_path / "t.npy")}, training=ONE_STEP)
    _, _, said = trained(config, tmp_path / "run", register=False)
    assert "warning: column 'x2' is always 1.7e+09" in said
    assert "warning: column 'x3' has 200 different values" in said
    assert "column 'x1'" not in said
    assert "column 'x4'" not in said


def test_training_says_the_problems_of_a_table(tmp_path: Path) -> None:
    mixed(300).to_csv(tmp_path / "t.csv", index=False)
    config = tiny_config(
        "table",
        data={"source": str(tmp_path / "t.csv"), "columns": {"comment": {"kind": "left_out"}}},
        training=ONE_STEP,
    )
    model, _, said = trained(config, tmp_path / "run", register=False)
    assert "warning: column 'Unnamed: 0': left out" in said
    assert "warning: column 'comment': left out: as data.columns says" in said
    assert model.run.data.table.left_out.keys() == {"Unnamed: 0", "comment"}
    assert model.run.config.data.columns["comment"].kind == "left_out"
