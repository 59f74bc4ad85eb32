"""The page, in a real Chromium, served by real servers."""

import contextlib
import hashlib
import io
import json
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from models.artifact import load_artifact
from models.images import encode_png, enlarge
from models.model import Model
from tests.artifacts import make_artifact
from tests.servers import ROOT, WGAN, free_port, running, serving, sign, wait_for

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CLASSES = {"even": 3, "<b>odd</b>": 5}
PATIENCE = 60_000
"""Milliseconds: the machine may be busy."""
KINDS = ("image", "rgb", "vector", "table", "rows", "sequence")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium here; .ci/run installs Debian's"
)


def change(artifact: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit an artifact's record."""
    run = json.loads((artifact / "run.json").read_text())
    edit(run)
    (artifact / "run.json").write_text(json.dumps(run))
    sign(artifact)


def measure(run: dict[str, Any]) -> None:
    """Fill in what a trained critic's record has."""
    levels = ("0.05", "0.25", "0.5", "0.75", "0.95")
    places = {
        place: {
            "mean": 1.0,
            "max": 2.25,
            "quantiles": dict(zip(levels, np.linspace(low, 1.5, 5).tolist(), strict=True)),
        }
        for place, low in (("real", 0.5), ("fake", 0.25), ("between", 0.75))
    }
    run["lipschitz"] = {
        "certified": None,
        "reason": "nothing bounds it",
        "sampled": 2.5,
        "gradient_norm": places,
    }
    found = {"value": 0.5, "threshold": 0.25, "evidence": "half are lost", "chart": None}
    run["findings"] = [
        {
            "name": "low_diversity",
            "present": True,
            "severity": "warning",
            "remedy": "more",
            **found,
        },
        {"name": "depth", "present": False, "severity": "info", "remedy": "", **found},
    ]


def compare(run: dict[str, Any]) -> None:
    """Fill in what a trained table's record has: marginals of nine columns."""
    number = {
        "kind": "number",
        "names": ["0 to 1", "1 to 2"],
        "edges": [0, 1, 2],
        "real": [0.25, 0.75],
        "generated": [0.5, 0.5],
        "real_missing": 0.125,
        "generated_missing": 0,
    }
    town = {
        **number,
        "kind": "category",
        "names": ["<b>a town</b>", "all others"],
        "edges": [],
    }
    day = {**number, "kind": "time", "names": ["2020-06-29", "2021-06-29"], "edges": []}
    columns = [town, number, day, *[number] * 6]
    run["marginals"] = [
        {"name": f"column {i}", "score": 0.5 + i / 100, **column}
        for i, column in enumerate(columns)
    ]


class Site(NamedTuple):
    """One of a server's models."""

    server: str
    name: str
    artifact: Path
    model: Model

    @property
    def url(self) -> str:
        """Of its page."""
        return f"{self.server}?model={self.name}"

    @property
    def api(self) -> str:
        return f"{self.server}v1/models/{self.name}"


Sites = dict[str, Site]


def made(artifact: Path, kind: str) -> Path:
    make_artifact(artifact, kind, class_counts=CLASSES if kind == "image" else None)
    if kind == "image":
        change(artifact, measure)
    if kind == "rows":
        change(artifact, compare)
    return artifact


@contextlib.contextmanager
def served(artifacts: dict[str, Path], folder: Path) -> Iterator[str]:
    """Serve artifacts by name, and give the address of the page."""
    port = free_port()
    command: list[object] = [WGAN, "serve", "--port", port]
    for name, artifact in artifacts.items():
        command += ["--model", f"{name}={artifact}"]
    with running(command, port, folder / "log") as process:
        url = f"http://127.0.0.1:{port}/"
        wait_for(f"{url}readyz", process, folder / "log")
        yield url


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    folder = tmp_path_factory.mktemp("page")
    artifacts = {kind: made(folder / kind, kind) for kind in KINDS}
    with served(artifacts, folder) as url:
        yield {k: Site(url, k, artifacts[k], load_artifact(artifacts[k])) for k in KINDS}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser,
    ):
        yield browser


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open a page; at the end, nothing may have been fetched from elsewhere, refused or thrown."""
    complaints: list[str] = []
    fetched: list[tuple[str, str]] = []
    with contextlib.ExitStack() as stack:

        def complain(message: ConsoleMessage) -> None:
            # An answer of the API that is an error is the page's to show.
            if message.type == "error" and "/v1/" not in message.location["url"]:
                complaints.append(message.text)

        def open_page(url: str, scheme: Any = "light", width: int = 1280) -> Page:
            context = stack.enter_context(
                browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            )
            page = context.new_page()
            page.set_default_timeout(PATIENCE)
            page.on("console", complain)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda request: fetched.append((request.url, url.partition("?")[0])))
            page.goto(url)
            return page

        yield open_page
    outside = [u for u, ours in fetched if not u.removeprefix("blob:").startswith((ours, "data:"))]
    assert outside == []
    assert complaints == []


def has(page: Page, selector: str, text: str | re.Pattern[str]) -> None:
    expect(page.locator(selector)).to_contain_text(text, timeout=PATIENCE)


def settled(page: Page) -> Page:
    has(page, "#generate-status", "made by")
    has(page, "#walk-status", "move the slider")
    return page


def pixels(page: Page, selector: str) -> np.ndarray:
    """What an element that can be drawn shows, in its own size: uint8 (H, W, RGBA)."""
    values, width, height = page.locator(selector).evaluate(
        """source => {
            const canvas = document.createElement("canvas");
            canvas.width = source.naturalWidth ?? source.width;
            canvas.height = source.naturalHeight ?? source.height;
            const pen = canvas.getContext("2d");
            pen.drawImage(source, 0, 0);
            const drawn = pen.getImageData(0, 0, canvas.width, canvas.height);
            return [[...drawn.data], canvas.width, canvas.height];
        }"""
    )
    return np.array(values, np.uint8).reshape(height, width, 4)


def picture(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))


@needs_chromium
def test_generating_by_seed_and_class(sites: Sites, visit: Callable[..., Page]) -> None:
    site = sites["image"]
    page = settled(visit(site.url))
    assert page.get_by_label("Class").first.locator("option").all_inner_texts() == [
        "any",
        "even",
        "<b>odd</b>",
    ]
    page.get_by_label("Seed", exact=True).fill("123")
    page.locator("#class").select_option("<b>odd</b>")
    page.get_by_label("Samples").select_option("16")
    page.get_by_role("button", name="Generate").click()
    has(
        page,
        "#generate-status",
        f"16 samples of seed 123, class <b>odd</b>, made by {site.model.digest[:12]}",
    )
    body = {"count": 16, "seed": 123, "class": "<b>odd</b>", "format": "png"}
    expected = httpx.post(f"{site.api}/samples", json=body).content
    assert np.array_equal(pixels(page, "#samples img"), picture(expected))
    assert '"seed":123' in page.locator("#curl").text_content()  # type: ignore[operator]
    page.get_by_role("button", name="Another seed").click()
    expect(page.locator("#generate-status")).not_to_contain_text("seed 123", timeout=PATIENCE)


@needs_chromium
def test_a_walk_begins_at_one_seed_and_ends_at_the_other(
    sites: Sites, visit: Callable[..., Page]
) -> None:
    site = sites["image"]
    page = settled(visit(site.url))
    page.locator("#from").fill("11")
    page.locator("#to").fill("12")
    page.locator("#walk-class").select_option("even")
    page.get_by_role("button", name="Walk").click()
    has(page, "#walk-status", "From seed 11 to seed 12")
    slider = page.get_by_role("slider", name="Place on the way")
    slider.focus()
    for keypress, share, seed in (("Home", 0, 11), ("End", 100, 12)):
        page.keyboard.press(keypress)
        text = f"{share}% of the way from seed 11 to seed 12"
        expect(slider).to_have_attribute("aria-valuetext", text)
        sample = site.model.sample(seed, 1, label=0)
        shown = pixels(page, "#walk canvas")[..., :1]
        assert np.array_equal(shown, enlarge(sample, 4)[0])
    page.keyboard.press("ArrowLeft")
    expect(slider).to_have_attribute("aria-valuetext", re.compile("97%"))


def drop(page: Page, name: str, content: bytes) -> None:
    transfer = page.evaluate_handle(
        """([name, bytes]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
            return transfer;
        }""",
        [name, list(content)],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def shown_scores(page: Page) -> list[float]:
    return [float(text) for text in page.locator("#scored strong").all_inner_texts()]


@needs_chromium
def test_dropped_and_chosen_images_are_scored(sites: Sites, visit: Callable[..., Page]) -> None:
    site = sites["rgb"]
    items = site.model.sample(5, 3)
    scores = site.model.score(items)
    files = [
        {"name": f"{i}.png", "mimeType": "image/png", "buffer": encode_png(item)}
        for i, item in enumerate(items)
    ]
    page = settled(visit(site.url))
    histogram = page.locator("#histogram svg")
    expect(histogram).to_have_attribute("aria-label", re.compile("from -1 to 1, median 0$"))
    assert histogram.locator(".mark").count() == 0
    drop(page, "dropped.png", encode_png(items[0]))
    has(page, "#score-status", "Score ")
    np.testing.assert_allclose(shown_scores(page), scores[:1], rtol=1e-3)
    has(page, "#scored", "dropped.png")
    page.locator("#files").set_input_files(files)  # type: ignore[arg-type]
    has(page, "#score-status", "3 items scored")
    np.testing.assert_allclose(shown_scores(page), scores, rtol=1e-3)
    assert histogram.locator("line.mark").count() == 3
    expect(histogram).to_have_attribute("aria-label", re.compile("; marked: "))
    wide = np.repeat(items[:1], 2, axis=2)[0]
    drop(page, "wide.png", encode_png(wide))
    has(page, "#scored", "wide.png")
    resized = site.model.resized(wide[None])
    np.testing.assert_allclose(shown_scores(page), site.model.score(resized), rtol=1e-3)
    drop(page, "broken.png", b"no image")
    has(page, "#score-status", "not a PNG, JPEG, WebP, GIF, TIFF, BMP or AVIF image")
    page.get_by_role("button", name="Score the samples").click()
    has(page, "#score-status", "64 items scored")


@needs_chromium
def test_a_conditional_critic_is_given_the_class(sites: Sites, visit: Callable[..., Page]) -> None:
    site = sites["image"]
    page = settled(visit(site.url))
    page.get_by_role("button", name="Score the samples").click()
    has(page, "#score-status", "choose a class")
    item = site.model.sample(5, 1, label=1)
    page.locator("#files-class").select_option("<b>odd</b>")
    drop(page, "odd.png", encode_png(item[0]))
    has(page, "#scored", "odd.png")
    expected = site.model.score(item, np.array([1]))
    np.testing.assert_allclose(shown_scores(page), expected, rtol=1e-3)


@needs_chromium
def test_a_score_beyond_all_real_ones_is_flagged(sites: Sites, visit: Callable[..., Page]) -> None:
    site = sites["vector"]
    page = settled(visit(site.url))
    item = np.float32([[1e6, -2e6]])
    score = site.model.score(item)
    assert abs(score[0]) > 10
    page.get_by_label("2 numbers: x1, x2").fill("1e6, -2e6")
    page.get_by_role("button", name="Score", exact=True).click()
    has(page, "#scored", "than all of them")
    np.testing.assert_allclose(shown_scores(page), score, rtol=1e-3)
    arrow = "← 1" if score[0] < 0 else "→ 1"
    expect(page.locator("#histogram svg .label")).to_have_text(arrow)
    page.get_by_label("2 numbers: x1, x2").fill("1, x")
    page.get_by_role("button", name="Score", exact=True).click()
    has(page, "#score-status", "2 numbers are needed")


@needs_chromium
def test_vectors_are_drawn_where_they_lie(sites: Sites, visit: Callable[..., Page]) -> None:
    site = sites["vector"]
    page = settled(visit(site.url))
    drawn = page.locator("#samples circle").evaluate_all(
        "all => all.map((c) => [c.cx.baseVal.value, c.cy.baseVal.value])"
    )
    samples = site.model.sample(7, 512)
    assert len(drawn) == 512
    # One scale for both axes, and up is more: places are an affine image of the samples.
    slopes = [
        np.polyfit(samples[:, axis], np.array(drawn)[:, axis], 1, full=True) for axis in (0, 1)
    ]
    (right, _), (up, _) = (s[0] for s in slopes)
    assert right == pytest.approx(-up, rel=1e-3)
    assert all(s[1].sum() < 1e-3 for s in slopes)
    assert page.locator("#walk circle.dot").count() == 36
    assert page.locator("#walk circle.mark").count() == 1


@needs_chromium
def test_sequences_and_tables(sites: Sites, visit: Callable[..., Page]) -> None:
    page = settled(visit(sites["sequence"].url))
    assert page.locator("#samples svg").count() == 2  # one for each feature
    assert page.locator("#samples svg").first.locator("path").count() == 16
    assert page.locator("#walk .mark.path").count() == 2
    page.get_by_role("button", name="Score the samples").click()
    has(page, "#score-status", "512 items scored")
    page = settled(visit(sites["table"].url))
    assert page.locator("#samples tbody tr").count() == 10
    assert page.locator("#samples thead th").all_inner_texts() == [
        "sample",
        "height",
        "mass",
        "age",
    ]
    row = page.locator("#samples tbody tr").first.locator("td").all_inner_texts()
    expected = sites["table"].model.sample(7, 1)[0]
    np.testing.assert_allclose([float(cell) for cell in row], expected, rtol=1e-3)
    assert page.locator("#walk dt").all_inner_texts() == ["height", "mass", "age"]


@needs_chromium
def test_marginals_of_a_table(sites: Sites, visit: Callable[..., Page]) -> None:
    page = settled(visit(sites["rows"].url))
    found = page.locator("#marginals > .marginal")
    expect(found).to_have_count(6)
    assert found.nth(0).locator("figcaption").inner_text() == (
        "column 0 likeness 0.50; without a value: 12.5% of real rows, 0% of generated ones"
    )
    label = found.nth(0).locator("svg").get_attribute("aria-label")
    assert label is not None
    assert "<b>a town</b>: real 25%, generated 50%" in label
    for i, (real, generated) in enumerate(((".bar", ".made"), (".bar", ".outline"))):
        chart = found.nth(i).locator("svg")
        assert chart.locator(real).count() == 3  # one is the legend's
        assert chart.locator(generated).count() == (3, 1)[i]
        widths = [
            chart.locator(real).nth(j).bounding_box()["width" if i == 0 else "height"]  # type: ignore[index]
            for j in range(2)
        ]
        assert widths[1] / widths[0] == pytest.approx(3, rel=0.02)
    expect(found.nth(2).locator("svg")).to_contain_text("2020-06-29")
    found.nth(1).locator("summary").click()
    cells = found.nth(1).locator("tbody td").all_inner_texts()
    assert cells == ["25%", "50%", "75%", "50%", "12.5%", "0%"]
    page.locator("#marginals > details > summary").click()
    rest = page.locator("#marginals > details .marginal svg")
    expect(rest).to_have_count(3)
    box = rest.first.bounding_box()
    assert box is not None
    assert box["height"] > 200
    page = settled(visit(sites["table"].url))
    expect(page.locator("#marginals-part")).to_be_hidden()


@needs_chromium
def test_files_of_rows_are_scored(sites: Sites, visit: Callable[..., Page], tmp_path: Path) -> None:
    page = settled(visit(sites["rows"].url))
    body = {"count": 30, "seed": 1, "format": "csv"}
    content = httpx.post(f"{sites['rows'].api}/samples", json=body).content
    (tmp_path / "rows.csv").write_bytes(content)
    page.locator("#files").set_input_files(tmp_path / "rows.csv")
    has(page, "#score-status", "30 items scored")
    (tmp_path / "bad.csv").write_text("age\nforty\n")
    page.locator("#files").set_input_files(tmp_path / "bad.csv")
    has(page, "#score-status", "column 'age'")


@needs_chromium
def test_conditions_on_missing_values(sites: Sites, visit: Callable[..., Page]) -> None:
    page = settled(visit(sites["rows"].url))
    page.locator("#conditions summary").click()
    missing = page.locator("#where [data-column=income][data-key=missing]")
    assert page.locator("#where [data-column=age][data-key=missing]").count() == 0
    head = page.locator("#samples thead th").all_inner_texts()
    cell = page.locator("#samples tbody td").nth(head.index("income") - 1)
    missing.select_option("no value")
    page.locator("#where [data-column=since][data-key=at_least]").fill("2021-06-01")
    page.get_by_role("button", name="Generate", exact=True).click()
    has(page, "#curl", '"income":{"missing":true}')
    has(page, "#curl", '"since":{"at_least":"2021-06-01"}')
    expect(cell).to_have_text("")
    page.locator("#where [data-column=income][data-key=at_least]").fill("0.5")
    page.get_by_role("button", name="Generate", exact=True).click()
    has(page, "#generate-status", "asks for no value and for more")
    missing.select_option("a value")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(cell).to_have_text(re.compile(r"0\.[5-9]"))
    page.locator("#where [data-column=since][data-key=at_most]").fill("2021-02-30")
    page.get_by_role("button", name="Generate", exact=True).click()
    has(page, "#generate-status", "'2021-02-30' is not a date or time")


@needs_chromium
def test_rows_of_a_table_under_conditions(sites: Sites, visit: Callable[..., Page]) -> None:
    page = settled(visit(sites["rows"].url))
    table = sites["rows"].model.table
    assert table is not None
    head = page.locator("#samples thead th").all_inner_texts()
    assert head == ["sample", *table.names]
    assert page.locator("#walk dt").all_inner_texts() == table.names
    page.locator("#conditions summary").click()
    page.locator("#where [data-column=home]").select_option("rent, old")
    page.locator("#where [data-column=age][data-key=at_least]").fill("40")
    page.locator("#where [data-column=age][data-key=at_most]").fill("45")
    page.get_by_role("button", name="Generate", exact=True).click()
    has(page, "#curl", '"where":{"age":{"at_least":40,"at_most":45},"home":["rent, old"]}')
    first = page.locator("#samples tbody td")
    expect(first.nth(head.index("home") - 1)).to_have_text("rent, old")
    expect(first.nth(head.index("age") - 1)).to_have_text(re.compile("^4[0-5]$"))
    rows = [
        dict(zip(head[1:], row.locator("td").all_inner_texts(), strict=True))
        for row in page.locator("#samples tbody tr").all()
    ]
    assert len(rows) == 10
    for row in rows:
        assert row["home"] == "rent, old"
        assert 40 <= int(row["age"]) <= 45
    page.get_by_role("button", name="Score the samples").click()
    has(page, "#score-status", "512 items scored")
    page.locator("#where [data-column=age][data-key=at_least]").fill("400")
    page.get_by_role("button", name="Generate", exact=True).click()
    has(page, "#generate-status", "age is from 18 to 89")


@needs_chromium
def test_what_is_known_of_the_model(sites: Sites, visit: Callable[..., Page]) -> None:
    site = sites["image"]
    page = settled(visit(site.url))
    for part in ("gradient penalty", "strength", "2.5 (found by ascent)", "nothing bounds it"):
        has(page, "#constraint", part)
    assert page.locator("#constraint tbody tr").count() == 3
    cells = page.locator("#constraint tbody tr").first.locator("td").all_inner_texts()
    assert cells == ["1", "0.5", "0.75", "1", "1.25", "1.5", "2.25"]
    quality = page.locator("#quality tbody tr").first
    expect(quality.locator("td")).to_have_text(["0.5", "0.4 to 0.6", "0.9", "10"])
    said = "low diversity (warning): half are lost (0.5; threshold 0.25)more"
    expect(page.locator("#findings li")).to_have_text(said)
    expect(page.locator("#findings summary")).to_have_text("1 looked for and not present")
    has(page, "#record", site.model.run.data.sha256)
    page.locator("#quality img").wait_for()
    grid = (site.artifact / "samples.png").read_bytes()
    assert np.array_equal(pixels(page, "#quality img"), picture(grid))


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["image", "vector"])
def test_nothing_is_in_the_way_of_a_screen_reader(
    sites: Sites, visit: Callable[..., Page], kind: str, scheme: str
) -> None:
    page = settled(visit(sites[kind].url, scheme))
    if kind == "image":
        page.locator("#class").select_option("even")
    page.get_by_role("button", name="Score the samples").click()
    has(page, "#score-status", "items scored")
    page.get_by_text("The same by curl").click()
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    assert len(results.response["passes"]) > 20


@needs_chromium
def test_the_keyboard_reaches_everything(sites: Sites, visit: Callable[..., Page]) -> None:
    page = settled(visit(sites["image"].url))
    wanted = page.locator("main :is(input, select, button, summary)").evaluate_all(
        "all => all.filter((e) => e.checkVisibility()).map((e) => e.id || e.textContent.trim())"
    )
    assert len(wanted) > 12
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            """() => document.activeElement === document.body ? ["", ""] : [
                document.activeElement.id || document.activeElement.textContent.trim(),
                getComputedStyle(document.activeElement).outlineStyle]"""
        )
        if not name:  # past the last one
            break
        reached.append(name)
        assert outline != "none", f"{name} has the focus, but does not show it"
    assert reached[0] == "Skip to the content"
    assert [name for name in reached if name in wanted] == wanted
    page.locator("#seed").fill("99")
    page.keyboard.press("Enter")
    has(page, "#generate-status", "seed 99")


@needs_chromium
@pytest.mark.parametrize("kind", KINDS)
def test_a_phone_needs_no_sideways_scrolling(
    sites: Sites, visit: Callable[..., Page], kind: str
) -> None:
    page = settled(visit(sites[kind].url, width=360))
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    small = page.locator("main svg text").evaluate_all(
        "all => all.filter((t) => t.getBoundingClientRect().height < 9).length"
    )
    assert small == 0, "a chart's text keeps its size"


@needs_chromium
def test_without_a_model_the_page_says_so_and_tries_again(
    tmp_path: Path, visit: Callable[..., Page]
) -> None:
    port = free_port()
    with running(serving(tmp_path / "none", port), port, tmp_path / "log"):
        page = visit(f"http://127.0.0.1:{port}/")
        has(page, "#notice", "could not be loaded")
        has(page, "#notice", "trying again every 5 seconds")
        expect(page.locator("#content")).to_be_hidden()


@needs_chromium
def test_a_key_is_asked_for_where_one_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visit: Callable[..., Page]
) -> None:
    digest = hashlib.sha256(b"sesame").hexdigest()
    (tmp_path / "keys").write_text(f"page:{digest}:samples,scores\n")
    monkeypatch.setenv("WGAN_API_KEYS_FILE", str(tmp_path / "keys"))
    port, log = free_port(), tmp_path / "log"
    artifact = make_artifact(tmp_path / "artifact", "vector")
    with running(serving(artifact, port), port, log) as process:
        url = f"http://127.0.0.1:{port}/"
        wait_for(f"{url}readyz", process, log)
        page = visit(url)
        has(page, "#key-form", "asks for an API key")
        expect(page.locator("#key")).to_be_focused(timeout=PATIENCE)
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#content")).to_be_hidden()
        page.locator("#key").fill("sesame")
        page.keyboard.press("Enter")
        settled(page)
        expect(page.locator("#key-form")).to_be_hidden()
        assert "Bearer KEY" in str(page.locator("#curl").text_content())
        page.locator("#quality img").wait_for()


@needs_chromium
def test_of_several_models_the_page_shows_one_and_leads_to_the_others(
    tmp_path: Path, visit: Callable[..., Page]
) -> None:
    kinds = {"digits & co": "image", "ring": "vector"}
    artifacts = {name: make_artifact(tmp_path / kind, kind) for name, kind in kinds.items()}
    with served(artifacts, tmp_path) as url:
        page = settled(visit(url))
        assert f"{url}v1/models/digits%20%26%20co/samples" in str(
            page.locator("#curl").text_content()
        )
        expect(page.locator("#models [aria-current]")).to_have_text("digits & co")
        page.locator("#quality img").wait_for()
        page.get_by_role("link", name="ring").click()
        has(page, "#curl", "v1/models/ring/samples")
        settled(page)
        expect(page.locator("#models [aria-current]")).to_have_text("ring")
        page.get_by_role("button", name="Score the samples").click()
        has(page, "#score-status", "scored")
        version = httpx.get(f"{url}v1/models/ring").json()["version"]
        has(page, "#subtitle", version)
        assert page.locator("#record-link").get_attribute("href") == "v1/models/ring"
        page.goto(f"{url}?model=wine")
        has(page, "#notice", "there are: digits & co, ring")


def test_what_the_client_has_is_not_sent_again(sites: Sites) -> None:
    site = sites["image"]
    with httpx.Client(base_url=site.server) as client:
        for path in ("/", "/page.css", "/page.js", "/v1/models/image/samples.png"):
            first = client.get(path)
            assert first.status_code == 200
            etag = first.headers["etag"]
            for named in (etag, f"W/{etag}", f'"x", {etag}', "*"):
                again = client.get(path, headers={"If-None-Match": named})
                assert (again.status_code, again.content) == (304, b"")
                assert again.headers["etag"] == etag
            assert client.get(path, headers={"If-None-Match": '"x"'}).content == first.content
        assert first.content == (site.artifact / "samples.png").read_bytes()
        assert first.headers["content-type"] == "image/png"
        policy = client.get("/").headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy


def test_the_package_holds_the_pages_files() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    globs = project["tool"]["setuptools"]["package-data"]["*"]
    files = {f.name for f in (ROOT / "service/page").iterdir() if f.suffix not in (".py", "")}
    assert files == {"index.html", "page.css", "page.js"}
    assert all(any(Path(name).match(g) for g in globs) for name in files)
