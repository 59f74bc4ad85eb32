"""Exports: run in ONNX Runtime and torch, they give the model's own samples and scores."""

import contextlib
import copy
import json
import logging
import re
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from torch.nn.utils import parametrize

import wgan_cli
from models.artifact import load_artifact
from models.errors import ExportError, UserError
from models.export import check, folder, formats, layouts
from models.export.graphs import (
    Graph,
    _convolution_gradient,
    _pooling_gradient,
    graphs,
    with_torchs_layers,
)
from models.folding import fold
from models.model import Model
from models.tables import TableSchema, Value
from models.tables.layout import place
from tests.artifacts import make_artifact
from tests.code_blocks import to_run
from tests.quick_exports import listed_once, untraced  # noqa: F401 # for all tests of this file
from tests.test_commands import WITHOUT, run_python
from tests.test_machine import limited

RESNET = {"architecture": "resnet", "depth": 4}
OPTIONS = {"equalized": True, "skips": True}
UNLIKE: dict[str, Any] = {
    "grey images": ("image", {"constraint": {"kind": "spectral_norm"}}),
    "classes": (
        "rgb",
        {"class_counts": {"a": 3, "b": 5}, "generator": {"normalization": "batch"}},
    ),
    "resnets": (
        "rgb",
        {
            "generator": {**RESNET, "normalization": "batch"},
            "critic": RESNET,
            "constraint": {"kind": "gradient_normalization"},
        },
    ),
    "options": (
        "rgb",
        {
            "class_counts": {"a": 3, "b": 5},
            "generator": {
                **RESNET,
                **OPTIONS,
                "normalization": "batch",
                "self_modulation": True,
            },
            "critic": {**RESNET, **OPTIONS, "minibatch_statistics": True},
            "constraint": {"kind": "spectral_norm"},
        },
    ),
    "gradients through options": (
        "rgb",
        {
            "generator": {**OPTIONS, "normalization": "layer", "self_modulation": True},
            "critic": OPTIONS,
            "constraint": {"kind": "gradient_normalization"},
        },
    ),
    "vectors": ("vector", {"constraint": {"kind": "bjorck", "method": "iterate"}}),
    "vectors, folded": ("vector", {"constraint": {"kind": "sandwich"}}),
    "kernels": ("image", {"constraint": {"kind": "cayley"}}),
    "sequences": ("sequence", {"critic": {"architecture": "lstm"}}),
    "columns": ("table", {"constraint": {"kind": "aol"}, "critic": {"activation": "groupsort"}}),
    "rows": ("rows", {}),
}


def model(path: Path, kind: str = "image", **changes: Any) -> Model:
    return load_artifact(make_artifact(path / "artifact", kind, **changes))


def opened(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.sampled
@pytest.mark.parametrize("name", UNLIKE)
def test_onnx_runtime_gives_our_samples_and_scores(name: str, tmp_path: Path) -> None:
    kind, changes = UNLIKE[name]
    made = model(tmp_path, kind, **changes)
    folder.export(made, "onnx", tmp_path / "out")
    generator, critic = (opened(tmp_path / f"out/{p}.onnx") for p in ("generator", "critic"))
    labels = {} if not made.classes else {"labels": made.labels(3, 40)}
    (items,) = generator.run(None, {"latents": made.latents(3, 40), **labels})
    ours = made.sample(3, 40)
    if items.dtype == np.uint8:
        assert np.abs(items.astype(int) - ours).max() <= 1
        assert (items != ours).mean() < 0.001
    else:
        np.testing.assert_allclose(items, ours, atol=1e-4 if name == "rows" else 1e-5)
    (input_name,) = {i.name for i in critic.get_inputs()} - {"labels"}
    (scores,) = critic.run(None, {input_name: ours, **labels})
    given = list(labels.values())
    np.testing.assert_allclose(scores, made.score(ours, *given), atol=1e-5)
    assert critic.get_inputs()[0].shape == ["N", *ours.shape[1:]]
    for part, session in (("generator", generator), ("critic", critic)):
        told = session.get_modelmeta().custom_metadata_map
        assert told.items() >= folder.metadata(made, part, "").items()


def test_metadata_says_where_an_export_is_from_and_sums_hold(tmp_path: Path) -> None:
    made = model(tmp_path, class_counts={"a": 3, "b": 5})
    folder.export(made, "torch-export", tmp_path / "out", version="7")
    files = {"generator.pt2", "critic.pt2", "SHA256SUMS"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=tmp_path / "out", check=True)
    extra = {"metadata.json": ""}
    program = torch.export.load(tmp_path / "out/generator.pt2", extra_files=extra)
    about = json.loads(extra["metadata.json"])
    assert about["name"] == "tiny"
    assert about["version"] == "7"
    assert about["constraint"] == "gradient_penalty"
    assert json.loads(about["classes"]) == ["a", "b"]
    assert about["latent_size"] == "4"
    assert about["artifact_sha256"] == made.digest
    labels = made.labels(3, 6)
    assert labels is not None
    z = made.latents(3, 6)
    images = program.module()(torch.from_numpy(z), torch.from_numpy(labels))
    assert np.abs(images.numpy().astype(int) - made.sample(3, 6)).max() <= 1


def test_a_pt2_of_ours_has_no_pickled_weight_or_constant(tmp_path: Path) -> None:
    folder.export(model(tmp_path, "vector"), "torch-export", tmp_path / "out")
    for name in ("generator", "critic"):
        with zipfile.ZipFile(tmp_path / f"out/{name}.pt2") as archive:
            indices = [n for n in archive.namelist() if n.endswith("_config.json")]
            assert len(indices) == 2
            for index in indices:
                assert '"use_pickle": true' not in archive.read(index).decode()


def test_a_version_in_bfloat16_is_exported_in_float32(tmp_path: Path) -> None:
    made = model(tmp_path, serving={"precision": "bf16"})
    folder.export(made, "torch-export", tmp_path / "out")
    assert (tmp_path / "out/generator.pt2").is_file()


@pytest.mark.parametrize("kind", ["image", "vector", "rows"])
def test_an_export_that_computes_something_else_is_refused(kind: str, tmp_path: Path) -> None:
    made = model(tmp_path, kind)
    generator, critic = graphs(made).values()

    def run(graph: Any, name: str, by: float) -> formats.Run:
        def changed(inputs: Any) -> Any:
            moved = {**inputs, name: inputs[name] + type(inputs[name].flat[0])(by)}
            return graph.program.module()(*map(torch.from_numpy, moved.values())).numpy()

        return changed

    check.check_generator(made, run(generator, "latents", 0))
    check.check_critic(made, run(critic, next(iter(critic.inputs)), 0))
    with pytest.raises(ExportError, match="other samples"):
        check.check_generator(made, run(generator, "latents", 0.01 if kind != "image" else 1))
    with pytest.raises(ExportError, match="other scores"):
        check.check_critic(made, run(critic, next(iter(critic.inputs)), 1))


def own(made: Model, change: Callable[[Any], Any]) -> formats.Run:
    """A generator that makes the model's own samples, and then changes them."""

    def run(inputs: Any) -> Any:
        made_of = made.decode(inputs["latents"], inputs.get("labels"))
        return change(np.concatenate(list(made_of)))

    return run


def refused(made: Model, change: Callable[[Any], Any]) -> str:
    """What is said of a generator whose samples are changed; empty if nothing is."""
    try:
        check.check_generator(made, own(made, change))
    except ExportError as error:
        return str(error)
    return ""


def test_samples_may_differ_by_a_hundred_thousandth_of_what_networks_see(tmp_path: Path) -> None:
    """Of 1 for small numbers, of themselves for large ones; and by a step of rounding."""
    made = model(tmp_path, "vector")
    *_, last = (m for m in made.generator.modules() if isinstance(m, torch.nn.Linear))
    with torch.no_grad():
        last.weight[1] *= 1000
        last.bias[:] = torch.tensor([0.0, 5000])
    made.forward = fold(made.generator)

    def moved(column: int, by: float) -> Callable[[Any], Any]:
        def change(samples: Any) -> Any:
            samples[:, column] += by * np.maximum(1, abs(samples[:, column]))
            return samples

        return change

    assert abs(made.sample(0, 64)[:, 0]).max() < 0.9
    for column in (0, 1):
        for sign in (-1, 1):
            assert not refused(made, moved(column, sign * 0.7e-5))
            assert "50.0% of the values differ" in refused(made, moved(column, sign * 1.5e-5))
    assert "gives float64 (1, 2), not float32 (1, 2)" in refused(made, lambda s: s.astype(float))
    assert "gives float32 (1, 1), not float32 (1, 2)" in refused(made, lambda s: s[:, :1])
    assert "other samples" in refused(made, lambda s: s + np.float32("nan"))
    made.scaling.offset += 1e8  # where a step is 8
    for steps, is_refused in ((1, False), (2, True)):
        for end in (-np.inf, np.inf):

            def step(samples: Any, steps: int = steps, end: float = end) -> Any:
                for _ in range(steps):
                    samples = np.nextafter(samples, np.float32(end))
                return samples

            assert bool(refused(made, step)) is is_refused


def test_a_model_in_bfloat16_is_compared_as_float32_computes_it(tmp_path: Path) -> None:
    made = model(tmp_path, "vector", serving={"precision": "bf16"})
    exact = copy.copy(made)
    exact.forward = fold(made.generator)
    check.check_generator(made, own(exact, lambda samples: samples))
    assert "other samples" in refused(made, lambda samples: samples)


def test_of_rows_the_rank_of_a_number_and_the_share_of_an_option_may_differ(
    tmp_path: Path,
) -> None:
    made = model(tmp_path, "rows")
    assert made.table is not None
    places = list(place(made.table.parts))
    value = next(p.code.start for p in places if isinstance(p.part, Value))
    option = next(p.code.start for p in places if not isinstance(p.part, Value))

    def moved(column: int, by: float) -> Callable[[Any], Any]:
        def change(codes: Any) -> Any:
            density = np.exp(-(codes[:, value] ** 2) / 2) / (2 * np.pi) ** 0.5
            codes[:, column] += by / (density if column == value else 1)
            return codes

        return change

    for column in (value, option):
        for sign in (-1, 1):
            assert not refused(made, moved(column, sign * 0.7e-5))
            assert "other samples" in refused(made, moved(column, sign * 1.5e-5))


def test_a_pixel_of_another_grey_is_refused(tmp_path: Path) -> None:
    made = model(tmp_path, class_counts={"a": 3, "b": 5})

    def brighter(images: Any) -> Any:
        images[0, 0, 0, 0] += 1
        return images

    assert not refused(made, lambda images: images)
    assert "1.6% of the values differ by more than 1e-05" in refused(made, brighter)


@pytest.mark.parametrize(("low", "high"), [(-50, 20), (-20, 50), (-1e-9, 1e-9)])
def test_scores_may_differ_by_a_hundred_thousandth_of_the_largest(
    low: float, high: float, tmp_path: Path
) -> None:
    """Of those of the model's own scores that the artifact keeps, too."""
    made = model(tmp_path, class_counts={"a": 3, "b": 5})
    made.quantiles = np.zeros_like(made.quantiles)
    made.quantiles[[0, -1]] = low, high
    size = max(abs(low), abs(high))

    def run(by: float) -> formats.Run:
        def changed(inputs: Any) -> Any:
            scores = made.score(inputs["items"], inputs["labels"])
            return scores + np.float32(by * max(size, abs(scores).max()))

        return changed

    for sign in (-1, 1):
        check.check_critic(made, run(sign * 0.7e-5))
        with pytest.raises(ExportError, match=r"by up to 1\.5e-05 of the largest"):
            check.check_critic(made, run(sign * 1.5e-5))
    for wrong in (lambda i: run(0)(i)[:, None], lambda i: run(0)(i) + np.float32("nan")):
        with pytest.raises(ExportError, match="other scores"):
            check.check_critic(made, wrong)


def test_a_refused_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ExportError("no")

    monkeypatch.setitem(folder.CHECKS, "generator", refuse)
    made = model(tmp_path, "vector")
    with pytest.raises(ExportError):
        folder.export(made, "torch-export", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_what_cannot_be_is_told_before_a_network_is_traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "graphs", lambda made: pytest.fail("it was traced"))
    made = model(tmp_path, "vector")
    with pytest.raises(UserError, match="artifact: is there already"):
        folder.export(made, "torch-export", tmp_path / "artifact")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="onnxruntime is not installed"):
        folder.export(made, "onnx", tmp_path / "out")


def test_the_codes_of_a_table_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with a manifest; the graphs are another test's."""
    made = model(tmp_path, "rows")
    assert made.table is not None
    monkeypatch.setattr(folder, "graphs", lambda made: {})
    folder.export(made, "onnx", tmp_path / "out", "kserve")
    names = {"columns.json", "inference-service.yaml", "SHA256SUMS"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=tmp_path / "out", check=True)
    manifest = yaml.safe_load((tmp_path / "out/inference-service.yaml").read_text())
    assert manifest["metadata"]["name"] == "tiny"
    text = (tmp_path / "out/columns.json").read_text()
    assert text.endswith("}\n")
    told = json.loads(text)
    assert TableSchema.model_validate(told["schema"]) == made.table
    assert list(told["places"]) == [column.name for column in made.table.coded]
    ends = [0]
    for start, stop in told["places"].values():
        assert start == ends[-1] <= stop
        ends.append(stop)
    assert ends[-1] == made.table.width
    with pytest.raises(AssertionError):
        folder.codec(model(tmp_path / "vectors", "vector"))
    for kind, classes in (("rows", None), ("vector", None), ("image", {"a": 3, "b": 5})):
        of = model(tmp_path / kind, kind, class_counts=classes)
        about = folder.metadata(of, "critic", "")
        assert about["data_kind"] == ("table" if kind == "rows" else kind)
        assert "version" not in about
        assert ("classes" in about, "columns" in about) == (bool(classes), kind == "rows")


@pytest.mark.parametrize(("taps", "stride"), [((3, 4), 2), ((3, 3), 1), ((4, 3), 2)])
def test_the_gradient_of_a_convolution_is_autograds(taps: tuple[int, int], stride: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, *taps, dtype=torch.float64)
    y = torch.nn.functional.conv2d(x, weight, None, stride, 1)
    gradient = torch.randn_like(y)
    (exact,) = torch.autograd.grad(y, x, gradient)
    two, one = [stride, stride], [1, 1]
    found, *_ = _convolution_gradient(gradient, x, weight, None, two, one, one, False, [0, 0], 1)
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("window", [(2, 2), (2, 3), (3, 2)])
@pytest.mark.parametrize("sides", [(7, 5), (8, 6), (7, 6), (8, 4)])
def test_the_gradient_of_pooling_is_autograds(
    sides: tuple[int, int], window: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *sides, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.avg_pool2d(x, window, ceil_mode=True)
    gradient = torch.randn_like(y)
    (exact,) = torch.autograd.grad(y, x, gradient)
    torch.testing.assert_close(_pooling_gradient(gradient, x, [*window]), exact)


def test_a_gradient_within_a_critic_is_written_out_and_rules_of_weights_are_not(
    tmp_path: Path,
) -> None:
    within = model(tmp_path / "a", "vector", constraint={"kind": "gradient_normalization"})
    critic = graphs(within)["critic"].program.module()
    check.check_critic(within, lambda given: critic(torch.from_numpy(given["items"])).numpy())
    made = model(tmp_path / "b", "vector", critic={"equalized": True}).critic
    plain = with_torchs_layers(made)
    assert any(parametrize.is_parametrized(module) for module in made.modules())
    assert not any(parametrize.is_parametrized(module) for module in plain.modules())
    points = torch.randn(5, 2)
    torch.testing.assert_close(plain(points), made(points))


def test_the_normal_quantile_is_that_of_torch() -> None:
    class Quantile(torch.nn.Module):
        def forward(self, p: torch.Tensor) -> torch.Tensor:
            return torch.special.ndtri(p)

    p = torch.cat([torch.linspace(1e-6, 1 - 1e-6, 999), torch.tensor([0.075, 0.925, 0.5])])
    rows = {0: torch.export.Dim("N")}
    program = torch.export.export(Quantile(), (p,), dynamic_shapes=(rows,))
    table = {torch.ops.aten.special_ndtri.default: formats.normal_quantile}
    with formats.quiet():
        made = torch.onnx.export(program, custom_translation_table=table, verbose=False)
    assert made is not None
    session = onnxruntime.InferenceSession(made.model_proto.SerializeToString())
    (found,) = session.run(None, {"p": p.numpy()})
    exact = torch.special.ndtri(p.double()).numpy()
    np.testing.assert_allclose(found, exact, rtol=2e-7, atol=1e-7)


def test_an_operation_that_onnx_does_not_have_is_named(tmp_path: Path) -> None:
    class Bessel(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.i1(x)

    x = torch.ones(2, 3)
    rows = {0: torch.export.Dim("N")}
    program = torch.export.export(Bessel(), (x,), dynamic_shapes=(rows,))
    with pytest.raises(ExportError, match=r"no form of .*i1.*; take --to torch-export"):
        formats.write("onnx", Graph(program, {"x": x}, "y"), tmp_path / "x.onnx", {})
    run = formats.write("torch-export", Graph(program, {"x": x}, "y"), tmp_path / "x.pt2", {})
    np.testing.assert_allclose(run({"x": x.numpy()}), torch.special.i1(x).numpy())


def test_torch_is_quiet_while_it_converts_and_as_loud_as_before_then() -> None:
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    with contextlib.suppress(ZeroDivisionError), formats.quiet():
        assert logger.level == logging.ERROR
        raise ZeroDivisionError
    assert logger.level == before


def wgan(*words: object) -> int:
    return wgan_cli.main(list(map(str, words)))


def test_layouts_of_triton_and_kserve(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact", class_counts={"a": 3, "b": 5})
    out = tmp_path / "out"
    assert wgan("export", artifact, "--to", "onnx", "--layout", "kserve", "--out", out) == 0
    for part in ("generator", "critic"):
        session = opened(out / f"tiny-{part}/1/model.onnx")
        config = fields((out / f"tiny-{part}/config.pbtxt").read_text())
        assert config["name"] == [f'"tiny-{part}"']
        assert config["backend"] == ['"onnxruntime"']
        for kind, tensors in (("input", session.get_inputs()), ("output", session.get_outputs())):
            assert config[kind] == [described(tensor) for tensor in tensors]
    manifest = yaml.safe_load((out / "inference-service.yaml").read_text())
    assert manifest["kind"] == "InferenceService"
    assert manifest["spec"]["predictor"]["model"]["modelFormat"] == {"name": "triton"}


def test_triton_is_told_of_each_tensor_without_its_rows(tmp_path: Path) -> None:
    inputs = {"latents": torch.zeros(3, 4), "labels": torch.zeros(3, dtype=torch.long)}
    graph = Graph(None, inputs, "items")  # type: ignore[arg-type]
    file = layouts.triton_folder(
        tmp_path / "new", "tiny", graph, torch.zeros(3, 8, 9, 1, dtype=torch.uint8)
    )
    assert file == tmp_path / "new/tiny/1/model.onnx"
    assert [*file.parent.iterdir()] == []
    said = (tmp_path / "new/tiny/config.pbtxt").read_text()
    assert said.splitlines() == [
        'name: "tiny"',
        'backend: "onnxruntime"',
        f"max_batch_size: {layouts.MAX_BATCH}",
        'input [ { name: "latents" data_type: TYPE_FP32 dims: [ 4 ] } ]',
        'input [ { name: "labels" data_type: TYPE_INT64 dims: [ 1 ] reshape { shape: [ ] } } ]',
        'output [ { name: "items" data_type: TYPE_UINT8 dims: [ 8, 9, 1 ] } ]',
        "dynamic_batching { }",
    ]


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("m2", "m2"),
        ("My Model_1.", "my-model-1"),
        ("2024", "wgan-2024"),
        ("a" * 60, "a" * 50),
        ("a" * 49 + "-bc", "a" * 49),
    ],
)
def test_kserve_is_given_a_name_that_it_allows(name: str, allowed: str) -> None:
    manifest = yaml.safe_load(layouts.kserve_manifest(name))
    assert manifest["metadata"]["name"] == allowed
    assert manifest["spec"]["predictor"]["model"]["storageUri"] == f"s3://BUCKET/{name}"


def fields(text: str) -> dict[str, list[str]]:
    """The fields of a configuration in protobuf's text format, as lines have them."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, value = re.fullmatch(r"(\w+):? (.*)", line).groups()  # type: ignore[union-attr]
        found.setdefault(name, []).append(value)
    return found


def described(tensor: Any) -> str:
    """A tensor of ONNX Runtime's, as Triton must be told of it; the first axis is the batch."""
    names = {"tensor(float)": "FP32", "tensor(uint8)": "UINT8", "tensor(int64)": "INT64"}
    assert tensor.shape[0] == "N"
    sizes = ", ".join(map(str, tensor.shape[1:]))
    shape = f"dims: [ {sizes} ]" if sizes else "dims: [ 1 ] reshape { shape: [ ] }"
    return f'[ {{ name: "{tensor.name}" data_type: TYPE_{names[tensor.type]} {shape} }} ]'


def test_mistakes_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "there"
    there.mkdir()
    for words, said in (
        (["--to", "onnx", "--out", there], "is there already"),
        (["--to", "torch-export", "--layout", "triton", "--out", tmp_path / "o"], "--to onnx"),
    ):
        artifact = make_artifact(tmp_path / "artifact", "vector")
        assert wgan("export", artifact, *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line


@pytest.mark.parametrize("target", ["onnx", "torch-export"])
def test_what_cannot_be_written_is_one_line_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    artifact, file = make_artifact(tmp_path / "artifact", "vector"), tmp_path / "file"
    file.touch()
    command = ["export", artifact, "--to", target, "--out"]
    said = []
    for out, most in ((file / "out", 2**30), (tmp_path / "new" / "out", 3000)):
        with limited(resource.RLIMIT_FSIZE, most):  # as on a disk without room
            assert wgan(*command, out) == 2
        said += capsys.readouterr().err.splitlines()
    first, *_, last = said
    assert f"{file / 'out'}: cannot be written: not a directory" in first
    assert "new/out: cannot be written: file too large" in last
    assert not list(tmp_path.glob("new/*"))


def test_a_missing_extra_is_one_line(tmp_path: Path) -> None:
    code = WITHOUT.format(absent={"onnxruntime"})
    out = str(tmp_path / "out")
    done = run_python(code, "export", str(tmp_path), "--to", "onnx", "--out", out)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "pip install 'wgan-foundry[export]'" in line


def test_the_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {
        name: load_artifact(make_artifact(tmp_path / f"runs/{name}/artifact", kind))
        for name, kind in (("photos", "rgb"), ("people", "rows"), ("first", "vector"))
    }
    monkeypatch.chdir(tmp_path)
    for line in "".join(to_run("docs/export.md", "sh")).splitlines():
        assert wgan(*line.split()[1:]) == 0
    found: dict[str, Any] = {}
    for block in to_run("docs/export.md", "python"):
        exec(block, found)
    images = made["photos"].sample(7, 16)
    for theirs in (found["images"], found["made_again"].numpy()):
        assert np.abs(theirs.astype(int) - images).max() <= 1
    np.testing.assert_allclose(found["scores"], made["photos"].score(images), atol=1e-4)
    rows = made["people"].rows(made["people"].sample(7, 100), 7)
    for name in ("age", "income", "home"):
        assert found["rows"][name] == rows[name].to_pylist(), name
    assert found["samples"].numpy().tobytes() == made["first"].sample(7, 16).tobytes()
