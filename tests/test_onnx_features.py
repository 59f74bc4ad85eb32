"""Features of a network of the user's own, against torch, and files that are refused."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from models.config import Config, DataConfig, EvaluationConfig, parse_config
from models.errors import ConfigError
from models.export.formats import quiet
from models.run_folder import CHECKPOINTS
from tests.artifacts import tiny_config
from tests.code_blocks import lines, terminal, to_run
from tests.quick_exports import listed_once, untraced  # noqa: F401 # for all tests of this file
from tests.registries import new_database
from tests.runs import trained
from training.data.dataset import load_data
from training.judging.evaluate import require_evaluation
from training.judging.extractors import FeatureExtractor, load_extractor
from training.run import load_frozen
from wgan_cli import main

pytestmark = pytest.mark.usefixtures("charts_undrawn")

RNG = np.random.default_rng(0)


def settings(path: Path) -> EvaluationConfig:
    return EvaluationConfig(extractor="onnx", onnx=str(path))


def load(path: Path, sha256: str | None = None) -> FeatureExtractor:
    return load_extractor("onnx", settings(path), sha256)


def network(channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3, padding=1),
        nn.Tanh(),
        nn.AvgPool2d(4),
    ).eval()


def exported(path: Path, module: nn.Module, *sizes: str | int, channels: int = 3) -> Path:
    """Write a network for images of these sizes, numbers or names of sizes that may vary."""
    sides = [8 * 4 if isinstance(size, str) else size for size in sizes]
    shapes = {0: torch.export.Dim("N")} | {
        2 + i: torch.export.Dim.DYNAMIC for i, size in enumerate(sizes) if isinstance(size, str)
    }
    with quiet():
        torch.onnx.export(
            module, (torch.rand(2, channels, *sides),), path, dynamic_shapes=(shapes,),
            dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip
    return path


@pytest.mark.parametrize("sizes", [(32, 24), ("H", "W")])
def test_features_are_those_of_the_network_in_torch(
    tmp_path: Path, sizes: tuple[str | int, str | int]
) -> None:
    """A graph with sizes gets images of these, one without them gets images as they are."""
    module = network()
    file = exported(tmp_path / "own.onnx", module, *sizes)
    extract = load(file)
    assert (extract.card.name, extract.card.sha256) == (
        "onnx", hashlib.sha256(file.read_bytes()).hexdigest()
    )  # fmt: skip
    for shape in ((32, 24, 3), (40, 56, 3), (40, 56, 1)):
        images = RNG.integers(0, 256, (37, *shape), np.uint8)  # more than one part
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).expand(-1, 3, -1, -1) / 255
        if sizes == (32, 24):
            pixels = nn.functional.interpolate(pixels, sizes, mode="bilinear", antialias=True)
        with torch.inference_mode():
            expected = module(pixels).flatten(1).numpy()
        found = extract.on(torch.device("cpu"))(images)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def graph(
    path: Path,
    *nodes: onnx.NodeProto,
    shape: tuple[object, ...] = ("N", 1, "H", "W"),
    kind: int = TensorProto.FLOAT,
    outputs: tuple[str, ...] = ("y",),
    weights: tuple[onnx.TensorProto, ...] = (),
) -> Path:
    """Write a graph from x to y; by default y is x."""
    made = helper.make_graph(
        list(nodes) or [helper.make_node("Identity", ["x"], ["y"])],
        "own",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        weights,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def node(kind: str, *inputs: str, output: str = "y", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), [output], **attributes)


def weight(*shape: int, name: str = "w", value: float = 1.0) -> onnx.TensorProto:
    return numpy_helper.from_array(np.full(shape, value, np.float32), name)


def outside(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """The same, with its numbers in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    return tensor


def branch(name: str, value: onnx.NodeProto) -> onnx.GraphProto:
    there = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph([value], name, [], [there])


def in_a_branch(path: Path) -> Path:
    hidden = node("Constant", output="a", value=outside(weight(1)))
    plain = node("Constant", output="b", value=weight(1))
    yes = node("Constant", output="yes", value=numpy_helper.from_array(np.array(True)))
    parts = {"then_branch": branch("a", hidden), "else_branch": branch("b", plain)}
    chosen = node("If", "yes", output="c", **parts)
    return graph(path, yes, chosen, node("Add", "x", "c"))


REFUSED: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: None, "no such file"),
    (lambda path: path.mkdir(), "no such file"),
    (lambda path: path.write_bytes(b"not a network"), "is no ONNX file"),
    (lambda path: path.write_bytes(b""), "ONNX Runtime does not load it"),
    (lambda path: graph(path, node("NoSuchOperator", "x")), "does not load it.*NoSuchOperator"),
    (
        lambda path: graph(path, node("Add", "x", "w"), weights=(outside(weight(1)),)),
        "weights in other files.*external_data=False",
    ),
    (in_a_branch, "weights in other files"),
    (
        lambda path: graph(
            path, node("Identity", "x"), node("Neg", "x", output="z"), outputs=("y", "z")
        ),
        r"1 inputs and 2 outputs \(x, y, z\)",
    ),
    (lambda path: graph(path, shape=(1, 3, 8, 8)), "with any N"),
    (lambda path: graph(path, shape=("N", 192)), r"not float32 \(N, C, H, W\)"),
    (lambda path: graph(path, node("Cast", "x", to=1), kind=TensorProto.UINT8), "not float32"),
    (lambda path: graph(path, shape=("N", 3, 4096, 64)), "not 8 to 512"),
    (lambda path: graph(path, shape=("N", 3, 4, "W")), "not 8 to 512"),
]


@pytest.mark.parametrize(("make", "said"), REFUSED)
def test_what_is_no_network_of_images_is_told_in_a_line(
    tmp_path: Path, make: Callable[[Path], object], said: str
) -> None:
    (tmp_path / "secret.bin").write_bytes(np.ones(1, np.float32).tobytes())
    make(tmp_path / "own.onnx")
    with pytest.raises(ConfigError, match=f"evaluation.onnx: .*own.onnx: .*{said}") as error:
        load(tmp_path / "own.onnx")
    assert "\n" not in str(error.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "own.onnx").open("wb") as file:
        file.truncate(2**31)  # takes no room
    with pytest.raises(ConfigError, match="has 2 GiB or more"):
        load(tmp_path / "own.onnx")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: graph(path, shape=("N", 3, "H", "W")), None),
        (lambda path: graph(path, shape=("N", 2, "H", "W")), "invalid dimensions"),
        (lambda path: graph(path, node("Neg", "x", output="m"), node("Sqrt", "m")), "NaN"),
        (
            lambda path: graph(path, node("ReduceMean", "x", keepdims=0)),
            r"2 of them give an array of shape \(\)",
        ),
        (
            lambda path: graph(
                path,
                node("Expand", "x", "w"),
                weights=(numpy_helper.from_array(np.array([1, 300, 8, 8]), "w"),),
            ),
            r"shape \(2, 300, 8, 8\), which must be N rows of at most 16384 features",
        ),
    ],
)
def test_a_network_that_does_not_suit_the_images_is_told_before_training(
    tmp_path: Path, make: Callable[[Path], Path], said: str | None
) -> None:
    file = make(tmp_path / "own.onnx")
    data = load_data(DataConfig(source="digits"))
    if said is None:
        require_evaluation(settings(file), data)
        return
    with pytest.raises(ConfigError, match=said):
        require_evaluation(settings(file), data)
    with pytest.raises(ConfigError, match=said):
        trained(configured(file), tmp_path / "run", register=False)
    assert not (tmp_path / "run" / CHECKPOINTS).exists()


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (("N", 1, 8, 512), None),
        (("N", 1, 7, 512), r"images of \[7, 512\] pixels a side, not 8 to 512"),
        (("N", 1, 8, 513), r"images of \[8, 513\] pixels a side"),
        (("N", 1, "H", 513), r"images of \[513\] pixels a side"),
        (("N", "C", 8, "W"), None),
        ((None, 1, "H", "W"), None),
    ],
)
def test_a_network_has_8_to_512_pixels_a_side(
    tmp_path: Path, shape: tuple[Any, ...], told: str | None
) -> None:
    """It gets images as wide as it wants them; of as many channels as it names, or any."""
    file = graph(tmp_path / "own.onnx", shape=shape)
    if told is not None:
        with pytest.raises(ConfigError, match=told):
            load(file)
        return
    extract = load(file)
    assert extract.channels == (None if shape[1] == "C" else 1)
    images = RNG.integers(0, 256, (33, 16, 24, 1), np.uint8)  # the second part has one
    size = [side if isinstance(side, int) else own for side, own in zip(
        shape[2:], (16, 24), strict=True)]  # fmt: skip
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    expected = nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
    np.testing.assert_allclose(extract(images), expected.flatten(1), rtol=1e-5, atol=1e-6)


def cut(path: Path, last: int) -> Path:
    """A graph whose features are the first of 16,385 rows of a column, so many of them."""
    ends = [numpy_helper.from_array(np.array([value]), name)
            for name, value in (("first", 0), ("last", last), ("axis", 1))]  # fmt: skip
    sizes = numpy_helper.from_array(np.array([1, 16_385, 1, 1]), "sizes")
    wide = node("Expand", "one", "sizes", output="wide")
    one = node("ReduceMax", "x", output="one", keepdims=1)
    one.input.append("axes")
    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    return graph(
        path, one, wide, node("Slice", "wide", "first", "last", "axis"),
        weights=(*ends, sizes, axes),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("count", "is_taken"), [(0, False), (1, True), (16_384, True), (16_385, False)]
)
def test_a_network_has_features_and_not_too_many(
    tmp_path: Path, count: int, is_taken: bool
) -> None:
    extract = load(cut(tmp_path / "own.onnx", count))
    images = np.full((2, 8, 8, 1), 51, np.uint8)
    if is_taken:
        np.testing.assert_allclose(extract(images), np.full((2, count), 0.2), rtol=1e-6)
    else:
        with pytest.raises(ConfigError, match="N rows of at most 16384 features"):
            extract(images)


def configured(file: Path) -> Config:
    values = tiny_config().model_dump(mode="json")
    values["training"] |= {"steps": 2, "critic_step": "eager"}
    values["evaluation"] = {"samples": 40, "extractor": "onnx", "onnx": str(file)}
    return parse_config(values)


def test_another_file_of_the_same_path_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = graph(tmp_path / "own.onnx")
    model, _, said = trained(configured(file), tmp_path / "run", register=False)
    assert "judging on held-out data over onnx" in said
    assert model.run.results.extractor == load(file).card
    command = ["evaluate", str(tmp_path / "run" / "artifact"), "--json"]
    assert main(command) == 0
    assert model.run.results.model_validate_json(capsys.readouterr().out) == model.run.results
    graph(file, node("Neg", "x"))
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"SHA-256 {load(file).card.sha256}, not {model.run.results.extractor.sha256}" in line
    assert "other figures" in line
    frozen = {**model.run.results.extractor.model_dump(), "version": "1"}
    with pytest.raises(ConfigError, match="other figures"):  # retraining of that name
        load_frozen(configured(file), frozen)


def test_the_settings_go_together() -> None:
    values = tiny_config().model_dump(mode="json")
    assert "onnx" not in values["evaluation"], "records without it keep their bytes"
    for evaluation in ({"extractor": "onnx"}, {"onnx": "own.onnx"}):
        with pytest.raises(ConfigError, match=r"'onnx' goes with evaluation\.onnx: give both"):
            parse_config({**values, "evaluation": evaluation})
    with pytest.raises(ConfigError, match="name the file with the SHA-256 abc"):
        load_extractor("onnx", EvaluationConfig(), "abc")


def test_without_the_packages_a_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    own = ["--set", "evaluation.extractor=onnx", "--set", "evaluation.onnx=own.onnx"]
    assert main(["train", "--preset", "digits", "--out", str(tmp_path / "run"), *own]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert "pip install 'wgan-foundry[export]'" in line


def test_the_example_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = terminal(tmp_path, monkeypatch)
    new_database(tmp_path)  # where the command would make one
    (code,) = to_run("docs/extractors.md", "python")
    with quiet():
        exec(code, {})
    for line in lines("".join(to_run("docs/extractors.md", "sh"))):
        run(line.replace("--steps 100", "--steps 5"))
    assert "judging on held-out data over onnx" in capsys.readouterr().out
