"""What changed between two sets, column by column, against W1 in closed form; and on the page."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import binom, chi2_contingency, wasserstein_distance

import wgan_cli
from models.config import DataConfig
from models.images import encode_png
from tests.test_w1_differences import Page
from training.lab.changes import Change, _chi_squared, changes_of_items
from training.lab.measure import changes
from training.lab.sets import load_sets


def compared(a: pd.DataFrame, b: pd.DataFrame) -> dict[str, Change]:
    return {c.name: c for c in changes(load_sets(a, b, DataConfig(source="in memory")))}


def month(rng: np.random.Generator, count: int = 400) -> pd.DataFrame:
    return pd.DataFrame({
        "amount": rng.normal(100, 20, count),
        "kind": rng.choice(["oak", "ash", "elm"], count, p=[0.5, 0.3, 0.2]),
        "when": pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 30, count), "D"),
        "age": np.where(rng.random(count) < 0.05, np.nan, rng.integers(18, 90, count)),
        "still": rng.normal(size=count),
    })  # fmt: skip


def test_two_months_of_a_table() -> None:
    rng = np.random.default_rng(0)
    january = month(rng)
    february = january.sample(frac=1, random_state=1).reset_index(drop=True)
    february["amount"] += 10
    february["when"] += pd.Timedelta(days=31)
    february["kind"] = february["kind"].replace({"elm": "fir"})
    february.loc[:99, "age"] = np.nan
    found = compared(january, february)
    assert [name for name, c in found.items() if not c.is_found] == ["still"]
    assert list(found)[-1] == "still"
    amount, kind, when, age = (found[name] for name in ("amount", "kind", "when", "age"))
    assert amount.distance == pytest.approx(10)  # in its own units
    assert amount.relative == pytest.approx(
        10 / pd.concat([january.amount, february.amount]).std(ddof=0)
    )
    assert when.distance == pytest.approx(31 * 86400)
    assert "31 days" in when.moved
    assert "mean 2026-01-" in when.a
    assert "mean 2026-02-" in when.b
    share = (january.kind == "elm").mean()
    assert kind.distance == pytest.approx(share)
    assert kind.notes == (f"new in B: fir {share:.1%}", f"in A alone: elm {share:.1%}")
    assert f"elm {share:.1%}" in kind.a
    assert "elm 0.0%" in kind.b
    assert f"missing {january.age.isna().mean():.1%}" in age.a
    assert f"missing {february.age.isna().mean():.1%}" in age.b


def test_chance_is_called_a_change_no_oftener_than_it_says() -> None:
    """By all columns together: of 60 pairs of alike tables hardly more than 5% have a change."""
    pairs = 60
    changed = 0
    for seed in range(pairs):
        rng = np.random.default_rng(seed)
        changed += any(c.is_found for c in compared(month(rng, 150), month(rng, 150)).values())
    assert binom.sf(changed - 1, pairs, 0.05) > 1e-3


@pytest.mark.parametrize(("few", "many"), [(200, 100_000), (300, 300), (60, 5000)])
def test_rare_categories_are_found_no_oftener_than_the_level(few: int, many: int) -> None:
    shares = 1 / np.arange(1, 400) ** 1.5
    p_values = []
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        counts = np.stack([rng.multinomial(n, shares / shares.sum()) for n in (few, many)])
        p_values.append(_chi_squared(counts))
    assert binom.sf(sum(p <= 0.05 for p in p_values) - 1, len(p_values), 0.05) > 1e-3
    assert binom.cdf(sum(p <= 0.05 for p in p_values), len(p_values), 0.03) > 1e-3, "nor never"


def test_rare_categories_count_together_or_with_another() -> None:
    """As the counts that remain, by scipy's own test."""
    pooled = np.array([[40, 30, 7], [30, 60, 20]])
    counts = np.array([[40, 30, 4, 3], [30, 60, 16, 4]])
    assert _chi_squared(counts) == pytest.approx(chi2_contingency(pooled).pvalue)
    alone = np.array([[40, 30, 1], [30, 60, 0]])  # with the next one
    assert _chi_squared(alone) == pytest.approx(chi2_contingency([[41, 30], [30, 60]]).pvalue)
    assert _chi_squared(np.array([[2, 1], [1, 2]])) == 1


def test_large_whole_numbers_keep_their_digits() -> None:
    a = (2**60 + np.arange(100))[:, None]
    (found,) = changes_of_items(a, a + 7, ["x"])
    assert found.distance == pytest.approx(7)
    assert found.relative == pytest.approx(7 / np.concatenate([a - 2**60, a + 7 - 2**60]).std())
    for low, high in ((-(2**62), np.int64), (2**63, np.uint64)):
        far = (low + np.arange(100, dtype=object) * 2**40).astype(high)[:, None]
        assert changes_of_items(far, far[::-1], ["x"])[0].distance == 0


def test_a_column_without_values_on_one_side() -> None:
    a = month(np.random.default_rng(0))
    found = compared(a, a.assign(amount=np.nan, kind=None))
    assert found["amount"].is_found
    assert found["amount"].b == "no value, missing 100.0%"
    assert found["kind"].is_found
    assert found["kind"].b == "missing 100.0%"


def test_images_are_compared_by_what_describes_them() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 200, (300, 8, 8, 3)).astype(np.uint8)
    b = rng.integers(0, 200, (300, 8, 8, 3)).astype(np.uint8)
    assert not any(c.is_found for c in changes_of_items(a, b, ()))
    b[..., 0] += 30
    found = {c.name: c for c in changes_of_items(a, b, ())}
    assert found["red"].is_found
    assert not found["green"].is_found
    assert found["red"].distance == pytest.approx(30, abs=5)
    assert found["brightness"].distance == pytest.approx(10, abs=2)
    blurred = gaussian_filter(a.astype(float), (0, 0.6, 0.6, 0)).astype(np.uint8)
    found = {c.name: c for c in changes_of_items(a, blurred, ())}
    assert found["sharpness"].is_found
    assert found["sharpness"].a > found["sharpness"].b


def test_images_one_pixel_high_have_steps_along_their_width() -> None:
    a, b = np.random.default_rng(0).integers(0, 256, (2, 60, 1, 9, 3)).astype(np.uint8)
    found = {c.name: c for c in changes_of_items(a, b, [])}
    steps = [np.abs(np.diff(x.astype(float), axis=2)).mean(axis=(1, 2, 3)) for x in (a, b)]
    assert found["sharpness"].distance == pytest.approx(wasserstein_distance(*steps))
    names = {c.name for c in changes_of_items(a[:, :, :1], b[:, :, :1], [])}
    assert names == {"brightness", "contrast", "red", "green", "blue"}


def test_sequences_are_compared_by_feature() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 300, 20, 2))
    b[:, :, 1] *= 2
    found = {c.name: c for c in changes_of_items(a, b, ())}
    assert next(name for name, c in found.items() if c.is_found) == "mean step of x2"
    assert not found["mean of x1 over the steps"].is_found


def test_of_very_many_columns_those_that_moved_most_are_compared() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 100, 1000))
    b[:, 777] += 3
    b[:, 111] *= 5
    found = changes_of_items(a, b, [f"x{i}" for i in range(1000)])
    assert {c.name for c in found if c.is_found} == {"x777", "x111"}
    assert len(found) == 300


def test_the_page_begins_with_what_changed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    january, february = month(rng), month(rng)
    february["amount"] += 15
    february["colour"] = "red"
    for name, rows in (("january", january), ("february", february)):
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
    files = [str(tmp_path / f"{name}.csv") for name in ("january", "february")]
    out, report = tmp_path / "page.html", tmp_path / "w1.json"
    command = ["w1", *files, "--json", str(report), "--out", str(out), "--steps", "20"]
    assert wgan_cli.main(command) == 0
    page = Page(out.read_text()).text
    first, _, rest = page.partition("What changed")
    assert rest.index("amount") < rest.index("All of it together")
    assert "1 of 5 columns changed by themselves beyond what chance does" in page
    assert "february.csv has colour" in first
    found = json.loads(report.read_text())
    assert found["changes"][0]["name"] == "amount"
    assert found["changes"][0]["distance"] == pytest.approx(15, abs=4)
    assert "february.csv has colour" in found["cautions"][0]


def test_folders_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for name, more in (("day", 60), ("night", 0)):
        (tmp_path / name).mkdir()
        for i, image in enumerate(rng.integers(0, 150, (60, 8, 8, 1)) + more):
            (tmp_path / name / f"{i}.png").write_bytes(encode_png(image.astype(np.uint8)))
    files = [str(tmp_path / name) for name in ("day", "night")]
    out = tmp_path / "page.html"
    command = ["w1", *files, "--json", str(tmp_path / "w1.json"), "--out", str(out)]
    assert wgan_cli.main([*command, "--steps", "20"]) == 0
    assert "changed by itself: brightness: mean 1" in capsys.readouterr().out
    assert "properties of the images changed" in out.read_text()
