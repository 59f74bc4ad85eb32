"""The configuration: everything recorded, nothing misspelt."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from models.augmentation import AugmentationConfig
from models.config import (
    Config,
    EvaluationConfig,
    constraint_class,
    flatten,
    parse_config,
    parse_data,
)
from models.errors import ConfigError
from models.networks import build_networks
from models.record import DataCard
from models.section import Section
from models.training import TrainingConfig
from tests.artifacts import tiny_config
from tests.test_released import RELEASED
from training.overrides import override
from training.presets import PRESETS, TUNED, build_config, fill_in


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"training.stepz": 3}, "training.stepz: no such key; did you mean 'steps'?"),
        ({"training.batchsize": 3}, "did you mean 'batch_size'?"),
        ({"constraint.strenght": 3}, "constraint.strenght: no such key; did you mean 'strength'?"),
        ({"constraint.kind": "gradient_penality"}, "did you mean 'gradient_penalty'?"),
        ({"criti.width": 3}, "criti: no such key; did you mean 'critic'?"),
        ({"generator.latentsize": 3}, "did you mean 'latent_size'?"),
        ({"evaluation.sample": 3}, "did you mean 'samples'?"),
        ({"training": 3}, "training"),
        ({"training.steps": -1}, "greater than or equal to 0"),
        ({"training.steps": 10**400}, "training.steps: a whole number here is less than 2**63"),
        ({"constraint.every": 2**63}, "constraint.every: a whole number here is less than 2**63"),
        ({"data.csv": {"skip": 2**63}}, "data.csv.skip: a whole number here is less than 2**63"),
        ({"training.batch_size": 1}, "a batch has at least 2 items"),
        ({"training.steps": "many"}, "training.steps"),
        ({"training.learning_rate": -1}, "greater than 0"),
        ({"training.critic_learning_rate": 0}, "greater than 0"),
        ({"training.optimizer": "optimistic"}, "training.optimizer"),
        ({"constraint.strength": "NaN"}, "finite"),
        ({"critic.activation": "relux"}, "critic.activation"),
        ({"critic.normalization": "batch"}, "use 'layer' or 'instance'"),
        ({"name": "../../etc"}, "name"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_right(
    overrides: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config("digits", overrides=overrides)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


class Part(Section):
    count: int = 0
    size: float = 0


def test_a_part_of_the_configuration_holds_numbers_that_a_record_can_hold_and_stays() -> None:
    for count in (2**63 - 1, 1 - 2**63):
        assert Part(count=count).count == count
    for count in (2**63, -(2**63), 10**400):
        with pytest.raises(ValidationError, match=r"less than 2\*\*63"):
            Part(count=count)
    assert Part(size=1e300).size == 1e300
    for size in (math.inf, math.nan):
        with pytest.raises(ValidationError, match="finite"):
            Part(size=size)
    with pytest.raises(ValidationError, match="frozen"):
        Part().count = 3  # type: ignore[misc]


def test_an_unknown_preset_names_the_others() -> None:
    with pytest.raises(ConfigError, match="8gaussians"):
        build_config("digit")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "kind", ["none", "weight_clipping", "gradient_penalty", "lipschitz_penalty", "spectral_norm"]
)
def test_every_preset_works_with_every_constraint(preset: str, kind: str) -> None:
    own = None if "source" in PRESETS[preset]["data"] else "mine"
    config = build_config(preset, own, kind)
    assert config.constraint.kind == kind
    assert config.name == (own or preset)
    assert parse_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("preset", "settings", "name"),
    [
        ("digits", {}, "digits"),
        ("digits", {"data.source": "digits"}, "digits"),
        ("digits", {"data.source": "mine.npy"}, "mine"),
        ("table", {"data.source": "data/Sales 2026 (été).csv.gz"}, "Sales-2026-ete"),
        ("table", {"data.source": "https://example.com/wine.csv?version=2"}, "wine"),
        ("table", {"data.source": "日本.csv"}, "table"),
        ("images", {"data.source": "s3://bucket/photos/"}, "photos"),
        ("images", {"data.source": f"{'a' * 80}.zip"}, "a" * 64),
        ("images", {"data.source": "photos", "name": "faces"}, "faces"),
    ],
)
def test_a_model_is_named_by_its_data(preset: str, settings: dict[str, Any], name: str) -> None:
    assert build_config(preset, overrides=settings).name == name


def test_a_folder_s_whole_name_counts(tmp_path: Path) -> None:
    for name in ("sales.2024", "sales.2025"):
        (tmp_path / name).mkdir()
        assert build_config("images", str(tmp_path / name)).name == name


def test_presets_without_data_ask_for_it() -> None:
    for preset in ("images", "table"):
        with pytest.raises(ConfigError, match="--data"):
            build_config(preset)
        config = build_config(preset, overrides={"data.source": "mine"})
        assert config.data.source == "mine"
    assert build_config("images", "mine").data.size == 32


def test_tuned_settings_are_of_presets_and_constraints_that_exist() -> None:
    for preset, kinds in TUNED.items():
        assert preset in PRESETS
        for kind in kinds:
            constraint_class(kind)


def test_published_settings_come_with_the_constraint() -> None:
    clip = tiny_config(constraint={"kind": "weight_clipping"}).training
    assert (clip.optimizer, clip.learning_rate) == ("rmsprop", 5e-5)
    penalty = tiny_config(constraint={"kind": "gradient_penalty"}).training
    assert (penalty.optimizer, penalty.learning_rate, penalty.betas) == ("adam", 1e-4, (0.5, 0.9))


@pytest.mark.parametrize(
    ("before", "overrides", "after"),
    [
        ({}, {"conditional": True}, {"conditional": True}),
        ({"a": {"b": 1, "c": 2}}, {"a.b": 3, "d.e": 4}, {"a": {"b": 3, "c": 2}, "d": {"e": 4}}),
        ({"a": 5}, {"a.b": 3}, {"a": 5}),
        ({"a": {}}, {"a.columns.b": 1, "a.csv.c": 2, "a.rules": "rules.yaml"},
         {"a": {"columns.b": 1, "csv.c": 2, "rules": "rules.yaml"}}),
        ({"data": {"csv": {"a": 1}}}, {"data.csv.b": 2, "data.csv.c": 3},
         {"data": {"csv": {"a": 1, "b": 2, "c": 3}}}),
        ({}, {"data.csv.b": 2, "data.csv": {}}, {"data": {"csv": {}}}),
        ({}, {"data.columns": {"a": {}}, "data.columns.a.b.c": 1, "data.columns.a.d": 2},
         {"data": {"columns": {"a": {"d": 2}, "a.b": {"c": 1}}}}),
        ({}, {"data.columns": None}, {"data": {"columns": None}}),
        ({}, {"data.columns": "COLUMNS.yaml", "data.columns.2024.low": 1},
         {"data": {"columns": {"2024": {"kind": "integer", "low": 1}}}}),
        ({}, {"data.rules": "RULES.yml"}, {"data": {"rules": ["a < b", "c <= d"]}}),
        ({}, {"data.rules": ["a < b"]}, {"data": {"rules": ["a < b"]}}),
        ({}, {"data.rules": "a < b"}, {"data": {"rules": "a < b"}}),
    ],
)  # fmt: skip
def test_settings_of_dotted_keys_are_put_into_those_there(
    before: dict[str, Any], overrides: dict[str, Any], after: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A name of a column may have points; nothing that a preset holds within is changed."""
    monkeypatch.chdir(tmp_path)
    Path("COLUMNS.yaml").write_text("2024: {kind: integer}")
    Path("RULES.yml").write_text("- a < b\n- c <= d")
    kept = before.get("data", {}).get("csv")
    held = copy.deepcopy(kept)
    override(before, overrides)
    assert before == after
    assert kept == held


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"data.columns": "list.yaml"}, "data.columns: list.yaml holds no columns"),
        ({"data.rules": "mapping.yaml"}, "data.rules: mapping.yaml holds no list"),
        ({"data.rules": "none.yml"}, "data.rules: none.yml cannot be read as YAML"),
        ({"data.columns": "broken.yaml"}, "data.columns: broken.yaml cannot be read as YAML"),
        ({"data.columns.a": 1}, r"data.columns.a: write data.columns.NAME.SETTING"),
        ({"data.columns": 5, "data.columns.a.b": 1}, "data.columns.a.b: write data.columns"),
    ],
)
def test_files_that_settings_name_hold_what_they_must(
    overrides: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.yaml").write_text("- a")
    Path("mapping.yaml").write_text("a: b")
    Path("broken.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=f"^{says}"):
        override({}, overrides)


def test_what_the_user_sets_wins() -> None:
    config = build_config(
        "digits", constraint="weight_clipping", overrides={"training.learning_rate": 0.5}
    )
    assert config.training.learning_rate == 0.5
    assert config.constraint.model_dump() == {
        "kind": "weight_clipping",
        "clip_value": config.constraint.model_dump()["clip_value"],
        "target_lipschitz": None,
        "scope": "all",
    }


def test_the_kind_can_be_set_as_a_key_too() -> None:
    by_key = build_config("digits", overrides={"constraint.kind": "spectral_norm"})
    assert by_key == build_config("digits", constraint="spectral_norm")


@pytest.mark.parametrize("normalization", ["none", "layer", "instance"])
def test_per_sample_normalisation_is_accepted_under_a_penalty(normalization: str) -> None:
    config = tiny_config(critic={"normalization": normalization})
    assert config.critic.normalization == normalization


@pytest.mark.parametrize("kind", ["none", "weight_clipping", "spectral_norm"])
def test_batch_normalisation_is_accepted_without_a_penalty(kind: str) -> None:
    config = tiny_config(constraint={"kind": kind}, critic={"normalization": "batch"})
    assert config.critic.normalization == "batch"


def test_the_dump_holds_every_default() -> None:
    dumped = tiny_config().model_dump(mode="json")
    for section, field in Config.model_fields.items():
        assert section in dumped or field.exclude_if, field
    assert dumped["training"]["ema_decay"] == 0.999
    assert dumped["constraint"] == {
        "kind": "gradient_penalty",
        "strength": 10.0,
        "target": 1.0,
        "every": 1,
        "where": "between",
        "spread": 0.5,
    }


@pytest.mark.parametrize(
    ("rows", "width", "steps", "batch_size"),
    [(3600, 64, 1500, 256), (3600, 256, 3000, 256), (3600, 5, 1500, 256), (140, 5, 300, 35)],
)
def test_steps_and_batches_suit_the_table(
    rows: int, width: int, steps: int, batch_size: int
) -> None:
    card = DataCard.model_construct(kind="vector", shape=(width,), training_count=rows)
    training = fill_in(build_config("table", "mine"), card).training
    assert (training.steps, training.batch_size) == (steps, batch_size)


def test_steps_and_batches_that_are_given_stay() -> None:
    card = DataCard.model_construct(kind="vector", shape=(5,), training_count=9)
    told = build_config("table", "mine", None, {"training.steps": 7, "training.batch_size": 3})
    assert fill_in(told, card) == told


@pytest.mark.parametrize(
    ("architecture", "side", "count", "depth", "steps", "batch_size"),
    [
        ("dcgan", 8, 100, 1, 2000, 24),
        ("dcgan", 8, 9, 1, 600, 4),
        ("dcgan", 32, 2500, 3, 10_000, 64),
        ("dcgan", 256, 40_000, 6, 40_000, 64),
        ("resnet", 64, 3063, 9, 11_100, 64),
    ],
)
def test_networks_and_steps_suit_the_images(
    architecture: str, side: int, count: int, depth: int, steps: int, batch_size: int
) -> None:
    card = DataCard.model_construct(kind="image", shape=(3, side, side), training_count=count)
    chosen = {f"{role}.architecture": architecture for role in ("generator", "critic")}
    config = fill_in(build_config("images", "mine", None, chosen), card, image_width=16)
    assert (config.training.steps, config.training.batch_size) == (steps, batch_size)
    for network in (config.generator, config.critic):
        assert (network.width, network.depth) == (16, depth)
    generator, critic = build_networks(config, card.shape)
    with torch.no_grad():
        images = generator(torch.zeros(2, config.generator.latent_size))
        assert critic(images).shape == (2,)
    maps = list[tuple[int, ...]]()
    for module in critic.modules():
        module.register_forward_hook(lambda *told: maps.append(told[2].shape))
    critic(images)
    assert min(shape[-1] for shape in maps if len(shape) == 4 and shape[-1] > 1) == 4


@pytest.mark.parametrize(
    ("preset", "told", "follows"),
    [
        ("images", {"selection": {}}, True),
        ("images", {"selection": {}, "critic.width": 8}, True),
        ("images", {}, False),  # it may have no items to measure overfitting by
        ("images", {"selection": {}, "augmentation": None}, False),
        ("images", {"selection": {}, "generator.width": 8, "critic.width": 8}, False),
        ("mnist5k", {"selection": {}}, False),
    ],
)
def test_images_with_validation_items_are_augmented_as_far_as_the_critic_overfits(
    preset: str, told: dict[str, Any], follows: bool
) -> None:
    card = DataCard.model_construct(kind="image", shape=(3, 32, 32), training_count=900)
    chosen = {"data.validation_fraction": 0.1, **told}
    found = fill_in(build_config(preset, "mine", None, chosen), card).augmentation
    if follows:
        assert found is not None
        assert (found.operations, found.strength, found.target) == (("translation",), None, 0.3)
    else:
        assert found is None


def test_networks_that_are_given_stay() -> None:
    card = DataCard.model_construct(kind="image", shape=(3, 32, 32), training_count=900)
    told = {"generator.width": 7, "critic.depth": 2, "training.steps": 5}
    config = fill_in(build_config("images", "mine", None, told), card)
    assert (config.generator.width, config.generator.depth) == (7, 3)
    assert (config.critic.width, config.critic.depth) == (24, 2)
    assert (config.training.steps, config.training.batch_size) == (5, 64)


@pytest.mark.parametrize("setting", ["generator.width", "critic.depth"])
def test_only_networks_of_images_are_chosen(setting: str) -> None:
    card = DataCard.model_construct(kind="vector", shape=(5,), training_count=900)
    config = fill_in(build_config("table", "mine", None, {setting: 0}), card)
    with pytest.raises(ConfigError, match=f"{setting}: 0 stands for what suits images; set 1"):
        build_networks(config, card.shape)


@pytest.mark.parametrize(
    ("device", "settings", "precision"),
    [
        ("cpu", {}, "fp32"),
        ("cuda", {}, "tf32"),
        ("cuda", {"training.precision": "fp32"}, "fp32"),
        ("cuda", {"training.precision": "bf16"}, "bf16"),
        ("cuda", {"privacy.epsilon": 1.0, "generator.normalization": "none"}, "fp32"),
    ],
)
def test_a_run_on_cuda_that_names_no_precision_takes_tf32_and_records_it(
    device: str, settings: dict[str, Any], precision: str
) -> None:
    card = DataCard.model_construct(kind="vector", shape=(5,), training_count=900)
    filled = fill_in(build_config("table", "mine", None, settings), card, device)
    assert filled.training.precision == precision
    recorded = parse_config(filled.model_dump(mode="json"))
    assert fill_in(recorded, card, "cuda") == recorded


def with_one(path: str, value: Any) -> Config:
    """A small configuration with one setting, of a dotted name."""
    section, _, key = path.partition(".")
    # Sections that may be left out have a setting that must be there.
    told = {"privacy": {"epsilon": 1.0}, "augmentation": {"strength": 0.5}}.get(section, {})
    if section == "selection":
        return tiny_config(selection={key: value}, data={"validation_fraction": 0.1})
    if key.startswith("columns."):
        return tiny_config(data={"columns": {"x": {key.removeprefix("columns."): value}}})
    if key in ("target", "noise_multiplier"):
        told = {}
    if key == "batch_size":
        told = {"steps": 4}
    return tiny_config(**{section: {**told, key: value}})


@pytest.mark.parametrize(
    ("path", "taken", "refused"),
    [
        ("data.columns.decimals", [0, 15], [-1, 16]),
        ("data.columns.max_categories", [1, 1000], [0, 1001]),
        ("data.size", [8, 256], [7, 257]),
        ("data.max_broken_fraction", [0, 0.999], [-0.001, 1, 1.5]),
        ("data.heldout_fraction", [0.001, 0.899], [0, 0.9, 0.95]),
        ("data.validation_fraction", [0, 0.001, 0.899], [-0.001, 0.9, 0.95]),
        ("evaluation.samples", [10], [9]),
        ("table.conditions", [0, 1], [-0.001, 1.001]),
        ("privacy.epsilon", [0.01], [0]),
        ("privacy.noise_multiplier", [0.01], [0]),
        ("privacy.delta", [1e-9, 0.999], [0, 1]),
        ("privacy.clip_norm", [0.01], [0]),
        ("augmentation.operations", ["cutout", ("cutout",)], [(), 3]),
        ("augmentation.strength", [0, 1], [-0.001, 1.001]),
        ("augmentation.target", [0.001, 0.999], [0, 1]),
        ("augmentation.ramp", [1], [0]),
    ],
)
def test_numbers_are_taken_up_to_their_ends(
    path: str, taken: list[Any], refused: list[Any]
) -> None:
    for value in taken:
        assert parse_config(with_one(path, value).model_dump(mode="json")) == with_one(path, value)
    for value in refused:
        with pytest.raises(ConfigError, match=path.replace(".columns.", r".columns.x.")):
            with_one(path, value)


def test_what_is_not_set_is_as_documented() -> None:
    config = tiny_config(privacy={"epsilon": 1.0}, generator={"normalization": "none"})
    data, privacy = config.data, config.privacy
    assert privacy is not None
    assert (data.max_broken_fraction, data.heldout_fraction, data.validation_fraction) == (
        0.01, 0.2, 0,
    )  # fmt: skip
    assert EvaluationConfig().samples == 2500
    assert config.conditions_share == 0.5
    assert tiny_config(table={"conditions": 0.25}).conditions_share == 0.25
    assert not parse_config({**config.model_dump(), "conditional": False}).conditional
    without = {k: v for k, v in config.model_dump(mode="json").items() if k != "conditional"}
    assert parse_config(without).conditional is False
    assert (privacy.delta, privacy.clip_norm, privacy.public) == (1e-5, 1.0, ())
    augmentation = AugmentationConfig(strength=1.0)
    assert augmentation.operations == ("colour", "translation", "cutout")
    assert augmentation.ramp == 500_000


LEFT_OUT: dict[str, Any] = {
    "data.key": "x",
    "data.layout": "nhwc",
    "data.range": "-1..1",
    "data.background": "black",
    "data.split": "folders",
    "data.validation_fraction": 0.25,
    "data.columns": {"x": {"low": 1.0}},
    "data.csv": {"skip": 3},
    "data.rules": ["a < b"],
    "data.rows_that_break_rules": "leave_out",
    "evaluation.target": "x",
    "serving.device": "cuda",
    "table.conditions": 0.25,
    "privacy.epsilon": 1.0,
    "augmentation.strength": 1.0,
    "selection.every": 3,
}
"""Settings, or sections, that a record has only if they are set: others then keep their bytes."""


def test_settings_that_were_not_there_once_are_written_only_if_they_are_set() -> None:
    sections = dict[str, dict[str, Any]]()
    for path, value in LEFT_OUT.items():
        section, _, key = path.partition(".")
        sections.setdefault(section, {})[key] = value
    apart = {name: sections.pop(name) for name in ("privacy", "selection")}
    selecting = {"selection": apart["selection"]}
    private = {"privacy": apart["privacy"], "generator": {"normalization": "none"}}
    written = [
        tiny_config(**told).model_dump(mode="json") for told in (sections | selecting, private, {})
    ]
    onnx = {"extractor": "onnx", "onnx": "net.onnx"}
    assert tiny_config(evaluation=onnx).model_dump(mode="json")["evaluation"]["onnx"] == "net.onnx"
    assert "onnx" not in written[-1]["evaluation"]
    for path, value in LEFT_OUT.items():
        section, _, key = path.partition(".")
        found = written[1 if section == "privacy" else 0][section][key]
        # A section has what is not set beside it.
        told, there = (
            {k: v for k, v in flatten({key: x}).items() if v is not None} for x in (value, found)
        )
        assert {**there, **told} == there, path
        assert key not in written[-1].get(section, {}), path
    for section in ("table", "privacy", "augmentation", "selection"):
        assert section not in written[-1]
    for one in written:
        assert parse_config(one).model_dump(mode="json") == one


def test_what_was_said_of_one_file_is_not_said_of_another() -> None:
    told = parse_data({"source": "a.npy", "layout": "nhwc", "range": "0..1", "size": 8})
    assert told.of("a.npy") == told
    assert told.of("b.npy") == parse_data({"source": "b.npy", "size": 8})
    other = parse_data({"source": "c.npy", "size": 16, "heldout_fraction": 0.4})
    assert told.over(other) == parse_data({**told.model_dump(), "heldout_fraction": 0.4})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"range": "1..0"}, "data.range: write LOW..HIGH, such as 0..1, or own, got '1..0'"),
        ({"rules": "a <"}, "data.rules: 'a <': write a rule as a < b"),
        ({"rules": ["a < b", "a << b"]}, "data.rules: 'a << b': write a rule"),
        ({"colums": {}}, "data.colums: no such key; did you mean 'columns'?"),
        ({"columns": {"x": {"hihg": 1}}}, "data.columns.x.hihg: no such key; did you mean 'high'"),
        ({"columns": {"x": 3}}, "data.columns.x: Input should be a valid dictionary"),
        ({"csv": {"skpi": 3}}, "data.csv.skpi: no such key; did you mean 'skip'"),
        ({"csv": 3}, "data.csv: Input should be a valid dictionary"),
        ({"source": None}, "data.source: Input should be a valid string, got None"),
    ],
)
def test_a_mistake_in_the_data_section_is_named(values: dict[str, Any], says: str) -> None:
    for parse in (
        lambda: parse_data({"source": "x.csv", **values}),
        lambda: tiny_config(data={"source": "x.csv", **values}),
    ):
        with pytest.raises(ConfigError) as caught:
            parse()
        assert str(caught.value).startswith(says)


def test_what_is_missing_is_said_without_what_is_there() -> None:
    with pytest.raises(ConfigError, match=r"^data\.source: Field required$"):
        parse_data({})
    values = tiny_config().model_dump(mode="json")
    for section in ("constraint", "training"):  # neither is completed by the other
        broken = {**values, section: "words"}
        with pytest.raises(ConfigError, match=rf"(^|; ){section}"):
            parse_config(broken)
    with pytest.raises(ConfigError, match=r"^constraint\.knd: no such key; did you mean 'kind'\?"):
        parse_config({**values, "constraint": {**values["constraint"], "knd": 1}})
    assert parse_data({"source": "x", "range": "own"}).range == "own"
    assert parse_data({"source": "x", "rules": "a < b"}).rules == ("a < b",)
    nested = {"a": {"b": 1, "c": {"d": None}}, "e": {}, "f": [{"g": 2}]}
    assert flatten(nested) == {"a.b": 1, "a.c.d": None, "f": [{"g": 2}]}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"selection": {"every": 2}}, r"^selection: a step is chosen by items .*such as 0\.1$"),
        (
            {
                "evaluation": {"extractor": "inception", "inception_weights": "w.pth"},
            },
            "give all three, or none",
        ),
        ({"evaluation": {"inception_weights": "w", "inception_sha256": "0" * 64}}, "all three"),
        ({"evaluation": {"extractor": "inception"}}, "all three, or none"),
        ({"evaluation": {"inception_weights": "w"}}, "all three, or none"),
        ({"evaluation": {"inception_sha256": "0" * 64}}, "all three, or none"),
        (
            {
                "evaluation": {
                    "extractor": "inception",
                    "inception_weights": "w",
                    "inception_sha256": "0" * 64,
                }
            },
            None,
        ),
        ({"evaluation": {"extractor": "onnx"}}, r"'onnx' goes with evaluation\.onnx: give both$"),
        ({"evaluation": {"onnx": "x.onnx"}}, r"'onnx' goes with evaluation\.onnx: give both$"),
        (
            {"critic": {"minibatch_statistics": True}, "training": {"batch_size": 6}}
            | {"constraint": {"kind": "weight_clipping"}},
            r"training\.batch_size: .* set a multiple of 4$",
        ),
        (
            {"critic": {"minibatch_statistics": True}, "training": {"batch_size": 8}}
            | {"constraint": {"kind": "weight_clipping"}},
            None,
        ),
        ({"training": {"batch_size": 6}}, None),
        (
            {"training": {"activation_checkpointing": True}},
            None,
        ),
        (
            {"training": {"activation_checkpointing": True}}
            | {"constraint": {"kind": "sandwich"}, "critic": {"activation": "relu"}},
            "sandwich makes weights of several layers' numbers; leave it out",
        ),
        ({"constraint": {"kind": "sandwich"}, "critic": {"activation": "relu"}}, None),
        ({"training": {"optimizer": "rmsprop"}}, None),
        (
            {"constraint": {"kind": "gradient_penalty", "rescale_adam": True, "every": 2}},
            None,
        ),
        (
            {"constraint": {"kind": "gradient_penalty", "rescale_adam": True, "every": 2}}
            | {"training": {"optimizer": "rmsprop"}},
            r"^constraint\.rescale_adam: training\.optimizer is rmsprop; set another",
        ),
        (
            {"constraint": {"kind": "gradient_penalty", "rescale_adam": True}},
            r"^constraint: rescale_adam: is for lazy evaluation",
        ),
        (
            {"privacy": {"epsilon": 1.0}, "training": {"precision": "bf16"}},
            r"^privacy: training\.precision: only fp32 is private$",
        ),
        (
            {"privacy": {"epsilon": 1.0}, "training": {"critic_step": "captured"}},
            r"^privacy: training\.critic_step: a private step has one way only",
        ),
        (
            {"privacy": {"epsilon": 1.0}, "constraint": {"kind": "max_gradient_penalty"}},
            r"^privacy: constraint max_gradient_penalty: .*; use another$",
        ),
        ({"training": {"micro_batch_size": 4}}, None),
        (
            {"training": {"micro_batch_size": 4}, "generator": {"normalization": "batch"}},
            r"^training\.micro_batch_size: generator\.normalization: 'batch' takes .*leave it out$",
        ),
        (
            {"training": {"micro_batch_size": 4}, "critic": {"minibatch_statistics": True}}
            | {"constraint": {"kind": "weight_clipping"}},
            r"^training\.micro_batch_size: critic\.minibatch_statistics: are of groups",
        ),
        (
            {"training": {"micro_batch_size": 4}, "constraint": {"kind": "max_gradient_penalty"}},
            r"^training\.micro_batch_size: constraint max_gradient_penalty: .*; use another; or",
        ),
        (
            {"privacy": {"epsilon": 1.0}, "selection": {"every": 2}}
            | {"data": {"validation_fraction": 0.1}},
            r"^privacy: selection: the choice tells of rows",
        ),
        (
            {"privacy": {"epsilon": 1.0}, "critic": {"minibatch_statistics": True}}
            | {"constraint": {"kind": "weight_clipping"}},
            r"^privacy: critic\.minibatch_statistics: mix the rows of a batch; leave them out$",
        ),
        (
            {"privacy": {"epsilon": 1.0}, "training": {"micro_batch_size": 4}},
            r"^privacy: training\.micro_batch_size, training\.activation_checkpointing: a private",
        ),
        (
            {"privacy": {"epsilon": 1.0}, "training": {"activation_checkpointing": True}},
            r"^privacy: training\.micro_batch_size, training\.activation_checkpointing: a private",
        ),
        ({"privacy": {"epsilon": 1.0}, "training": {"critic_step": "eager"}}, None),
        ({"privacy": {"epsilon": 1.0, "public": "schema"}}, None),
        ({"privacy": {}}, r"^privacy: set epsilon or noise_multiplier, one of the two"),
        ({"privacy": {"epsilon": 1.0, "noise_multiplier": 1.0}}, r"^privacy: set epsilon or noise"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_and_the_others_taken(
    settings: dict[str, dict[str, Any]], says: str | None
) -> None:
    told = {"generator": {"normalization": "none"}, **settings}
    if says is None:
        config = tiny_config(**told)
        assert parse_config(config.model_dump(mode="json")) == config
        return
    with pytest.raises(ConfigError, match=says):
        tiny_config(**told)


BOUNDS: dict[str, tuple[list[object], list[object]]] = {
    "steps": ([0, 1], [-1]),
    "batch_size": ([0, 2], [-1, 1]),
    "micro_batch_size": ([None, 1], [0]),
    "num_critic_steps": ([1], [0]),
    "learning_rate": ([1e-9, 0.5], [0, -1]),
    "critic_learning_rate": ([None, 1e-9, 0.5], [0, -1]),
    "decay_from": ([0, 1], [-1e-9, 1.1]),
    "ema_decay": ([0, 0.99999], [-1e-9, 1]),
    "seed": ([0, 2**31 - 1], [-1, 2**31]),
    "log_every": ([1], [0]),
    "checkpoint_every": ([1], [0]),
    "divergence_gap": ([1e-9, 0.5], [0]),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_settings_of_training_have_bounds(name: str) -> None:
    taken, refused = BOUNDS[name]
    for value in taken:
        assert getattr(tiny_config(training={name: value}).training, name) == value
    for value in refused:
        with pytest.raises(ConfigError, match=rf"training\.{name}"):
            tiny_config(training={name: value})


WRITTEN_IF_SET = {
    "micro_batch_size": 4,
    "activation_checkpointing": True,
    "critic_learning_rate": 1e-3,
    "schedule": "cosine",
}


def test_settings_that_records_of_old_lack_are_written_only_if_they_are_set() -> None:
    plain = tiny_config().training
    assert not WRITTEN_IF_SET.keys() & plain.model_dump().keys()
    changed = tiny_config(training={**WRITTEN_IF_SET, "decay_from": 0.0}).training
    assert WRITTEN_IF_SET.items() <= changed.model_dump(mode="json").items()
    for settings in (plain, changed):
        assert TrainingConfig.model_validate_json(settings.model_dump_json()) == settings
    assert (plain.critic_rate, changed.critic_rate) == ("learning_rate", "critic_learning_rate")


def test_what_is_not_said_of_training_is_as_in_versions_of_before() -> None:
    """A configuration file means the same as when its run was recorded."""
    record = json.loads((RELEASED / "images" / "run.json").read_text())["config"]["training"]
    said = ("steps", "num_critic_steps", "optimizer", "learning_rate")
    plain = TrainingConfig(**{name: record[name] for name in said})
    # The runs had these set: betas of the networks' paper, and a rate and an average of their own.
    own = {"betas": (0.5, 0.9), "decay_from": 1.0, "ema_decay": 0.999, "seed": 0}
    assert plain.model_dump() == {**record, **own}
