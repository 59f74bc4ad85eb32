"""Presets: settings that are known to work, by name."""

from __future__ import annotations

import math
import os
import re
import unicodedata
from typing import Any

from models.augmentation import AugmentationConfig
from models.config import Config, constraint_class, parse_config
from models.errors import ConfigError
from models.networks.parts import GROUP, image_sizes
from models.networks.settings import ARCHITECTURES, MAX_DEPTH
from models.record import DataCard
from models.remote import reached
from training.data.sources.files import Location
from training.overrides import Values, override

# Found by a search on one core (docs/decisions.md). What matters most: ReLU in both networks, as
# many latents as the data have dimensions, and many generator steps. Two critic steps for each
# suffice. `25gaussians` was given another critic later.
_TOY_NETWORK: Values = {"architecture": "mlp", "width": 128, "depth": 3, "activation": "relu"}
_TOY: Values = {
    "generator": {**_TOY_NETWORK, "latent_size": 2},
    "critic": _TOY_NETWORK,
    "constraint": {"kind": "lipschitz_penalty"},
    "training": {
        "steps": 4000,
        "batch_size": 256,
        "decay_from": 0.3,
        "ema_decay": 0.995,
        "checkpoint_every": 1000,
    },
}


def _tuned(
    learning_rate: float, beta_1: float, num_critic_steps: int = 2, **constraint: float
) -> dict[str, Values]:
    """Settings by constraint: a penalty goes well with Adam, and few critic steps."""
    training: Values = {
        "optimizer": "adam",
        "learning_rate": learning_rate,
        "betas": (beta_1, 0.9),
        "num_critic_steps": num_critic_steps,
    }
    sections = {"constraint": constraint} if constraint else {}
    return {"lipschitz_penalty": {**sections, "training": training}}


def _images(
    width: int,
    depth: int,
    steps: int,
    batch_size: int = 64,
    critic_activation: str = "leaky_relu",
    **options: bool,
) -> Values:
    network: Values = {"architecture": "dcgan", "width": width, "depth": depth, **options}
    return {
        "generator": {**network, "activation": "relu", "normalization": "batch", "latent_size": 64},
        "critic": {**network, "activation": critic_activation},
        "constraint": {"kind": "lipschitz_penalty"},
        "training": {
            "steps": steps,
            "batch_size": batch_size,
            "decay_from": 0.3,
            "ema_decay": 0.995,
        },
    }


# The sizes, steps and batches are those that suit the images, by `fill_in`. Tried for equal times
# on validation items of `emoji32` (docs/decisions.md).
_ANY_IMAGES = _images(width=0, depth=0, steps=0, batch_size=0, critic_activation="abs", skips=True)
_ANY_IMAGES["generator"]["self_modulation"] = True
PRESETS: dict[str, Values] = {
    "digits": {"data": {"source": "digits"}, **_images(width=32, depth=2, steps=2500)},
    # Found by a search for the shortest time to good samples: narrow networks, since their steps
    # are cheap, and `abs` in the critic.
    "mnist5k": {
        "data": {"source": "mnist5k"},
        **_images(width=16, depth=2, steps=5000, critic_activation="abs"),
    },
    "emoji32": {"data": {"source": "emoji32"}, **_ANY_IMAGES},
    "images": {"data": {"size": 32}, **_ANY_IMAGES},
    "table": {
        "data": {},
        "generator": {
            "architecture": "mlp",
            "width": 128,
            "depth": 3,
            "normalization": "batch",
            "latent_size": 128,
        },
        "critic": {"architecture": "mlp", "width": 128, "depth": 3, "activation": "abs"},
        "constraint": {"kind": "lipschitz_penalty"},
        # Steps and batch size: those that suit the table, by `fill_in`.
        "training": {"steps": 0, "batch_size": 0, "decay_from": 0.3, "ema_decay": 0.995},
        "table": {"conditions": 0.5},
    },
    "8gaussians": {"data": {"source": "8gaussians"}, **_TOY},
    "25gaussians": {
        "data": {"source": "25gaussians"},
        **_TOY,
        "critic": {**_TOY["critic"], "width": 64, "activation": "abs"},
        "training": {
            **_TOY["training"],
            "steps": 7000,
            "batch_size": 512,
            "decay_from": 0.5,
            "ema_decay": 0.998,
        },
    },
    "swissroll": {"data": {"source": "swissroll"}, **_TOY},
    "ar2": {
        "data": {"source": "ar2"},
        "generator": {"architecture": "gru", "width": 32, "depth": 1, "latent_size": 64},
        "critic": {"architecture": "gru", "width": 64, "depth": 1},
        "constraint": {"kind": "lipschitz_penalty"},
        "training": {"steps": 1000, "batch_size": 64, "decay_from": 0.3, "ema_decay": 0.995},
    },
}
"""Configurations by name. The model's name is left out, and in some the data's source. What the
training section leaves out comes from `TUNED`, or else from the constraint's paper."""

_TOY_TUNED = _tuned(2e-3, 0.5, strength=1.0)
# A penalty in every other step leaves time for more steps.
_ANY_IMAGES_TUNED = _tuned(2e-3, 0.0, num_critic_steps=1, every=2)
TUNED: dict[str, dict[str, Values]] = {
    "digits": _tuned(1e-3, 0.0),
    "mnist5k": _tuned(2e-3, 0.0),
    "emoji32": _ANY_IMAGES_TUNED,
    "images": _ANY_IMAGES_TUNED,
    "table": _tuned(1e-3, 0.5, strength=1.0),
    "8gaussians": _TOY_TUNED,
    # Found by a search for the shortest time to good samples, on seeds other than the judged 0 to 2
    # (docs/decisions.md).
    "25gaussians": _tuned(4e-3, 0.0, strength=1.0),
    "swissroll": _TOY_TUNED,
    "ar2": _TOY_TUNED,
}
"""Settings found better than the published ones: by preset, then by constraint."""
MEASUREMENTS = 20
"""Measurements on validation items in a run that says nothing of them."""
WIDTHS = (16, 24, 32, 48, 64, 96, 128)
"""Base channels of networks of images, of which a budget chooses."""
FOLLOWS_OVERFITTING = AugmentationConfig(operations=("translation",), target=0.3, ramp=100_000)
"""Augmentation of a run that has validation items, where networks of images leave their width."""
USUAL_WIDTH = 24
"""Base channels of networks of images where nothing limits or grants time."""
PRESETS_BY_KIND = {"vector": "table", "image": "images", "sequence": "ar2"}
"""The preset for data that have none of their own, by kind."""


def suitable_preset(source: str, overrides: dict[str, Any] | None = None) -> str:
    """Choose the preset for data: their own, or the one for their kind.

    This loads the data, but for folders and archives: their images are read as the preset's.

    Args:
        source: of the data, as ``data.source``.
        overrides: dotted keys and values, as of `build_config`; those of the data section count.

    Raises:
        UserError: the data cannot be used.
    """
    if source in PRESETS:
        return source
    from training.data.dataset import load_data
    from training.data.loading import holds_images

    if reached(source, lambda: holds_images(source)):
        return PRESETS_BY_KIND["image"]
    of_data = {key: value for key, value in (overrides or {}).items() if key.startswith("data")}
    config = build_config("table", source, None, of_data)
    return PRESETS_BY_KIND[load_data(config.data).card.kind]


def fill_in(
    config: Config, card: DataCard, device: str = "cpu", image_width: int = USUAL_WIDTH
) -> Config:
    """The configuration with the settings that suit the data, where it leaves them: where it has 0.

    Where it names no precision, a run on a CUDA device takes tf32, unless it is private.

    N training rows whose codes have W numbers get ``25 sqrt(N max(1, W / 64))`` generator steps, in
    hundreds: 1,500 for 3,600 rows, 5,000 for 40,000. More rows and more columns have more to learn,
    and people wait longer for them (docs/decisions.md). N images get ``200 sqrt(N)`` steps, and
    networks that halve them as long as no side falls below 4 pixels. A batch has 256 rows, or 64
    images, or a quarter of few. Images of a run with ``selection`` are augmented as far as the
    critic overfits, if a width is left and nothing is said of ``augmentation``.

    Args:
        config: to fill in.
        card: of the data.
        device: ``cpu`` or ``cuda``, where the run will train.
        image_width: base channels of networks of images that leave their width.

    Raises:
        ConfigError: the networks take another kind of data; names the preset for it.
    """
    _require_preset_of_kind(config, card)
    given, count = config.training, card.training_count
    if card.kind == "image":
        steps = 100 * max(1, round(2 * math.sqrt(count)))
        # Whole groups, as of a critic's minibatch statistics, and even shares of two processes.
        batch_size = min(64, max(GROUP, count // 4 // GROUP * GROUP))
    else:
        steps = 100 * max(1, round(0.25 * math.sqrt(count * max(1.0, card.shape[0] / 64))))
        batch_size = max(2, min(256, count // 4))
    suited: Values = {
        "steps": given.steps or steps,
        "batch_size": given.batch_size or batch_size,
    }
    if device == "cuda" and "precision" not in given.model_fields_set and config.privacy is None:
        suited["precision"] = "tf32"
    filled: Values = {"training": given.model_copy(update=suited)}
    if config.selection is not None and not config.selection.every:
        every = max(1, math.ceil(suited["steps"] / MEASUREMENTS))
        filled["selection"] = config.selection.model_copy(update={"every": every})
    if card.kind == "image":
        left_open = not (config.generator.width and config.critic.width)
        may_follow = config.selection is not None and "augmentation" not in config.model_fields_set
        if left_open and may_follow:  # there are validation items to measure overfitting by
            filled["augmentation"] = FOLLOWS_OVERFITTING
        _, height, side = card.shape
        halvings = len(image_sizes(height, side, MAX_DEPTH)) - 1
        for role in ("generator", "critic"):
            network = getattr(config, role)
            # A residual block has two layers, and one more layer belongs to no block.
            depth = 2 * halvings + 1 if network.architecture == "resnet" else halvings
            sizes = {"width": network.width or image_width, "depth": network.depth or depth}
            filled[role] = network.model_copy(update=sizes)
    return config.model_copy(update=filled)


def width_of(earlier: Config, config: Config) -> int:
    """The width that an earlier run's networks have where a configuration leaves it; see `fill_in`.

    Args:
        earlier: the run's.
        config: with a width of 0 in one of its networks, or in both.
    """
    return (earlier.critic if config.generator.width else earlier.generator).width


def _require_preset_of_kind(config: Config, card: DataCard) -> None:
    """Require networks for the kind of data, and say at once all that must change otherwise."""
    fitting = ARCHITECTURES[f"{card.kind}s"]
    networks = {"generator": config.generator, "critic": config.critic}
    wrong = [role for role, network in networks.items() if network.architecture not in fitting]
    if wrong:
        settings = " and ".join(f"{role}.architecture={fitting[0]}" for role in wrong)
        # A preset whose networks follow the images has other settings for images alone.
        own = ", or set " + settings if all(networks[role].width for role in wrong) else ""
        architectures = " and ".join(f"{role} {networks[role].architecture}" for role in wrong)
        images = "; or, if they are grey images, data.layout=nhw" if card.layout == "ntd" else ""
        raise ConfigError(
            f"{config.data.source}: holds {card.kind}s, which {architectures} cannot take: start "
            f"from the preset {PRESETS_BY_KIND[card.kind]}{own}{images}"
        )


def build_config(
    preset: str,
    data: str | None = None,
    constraint: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> Config:
    """Build a configuration from a preset.

    The model is named by its data (`name_of`), unless ``overrides`` name it; one of a preset's own
    data, or of data without a name, by the preset.

    Args:
        preset: its name.
        data: another data source than the preset's.
        constraint: another kind of constraint, with the settings tuned for it, or else published.
        overrides: dotted keys, such as ``training.steps``, and their values; they replace all
            other settings.

    Raises:
        ConfigError: no such preset, key or value.
    """
    if preset not in PRESETS:
        raise ConfigError(f"no preset '{preset}'; there are: {', '.join(PRESETS)}")
    values: Values = {k: dict(v) for k, v in PRESETS[preset].items()}
    overrides = dict(overrides or {})
    kind = str(overrides.pop("constraint.kind", constraint or values["constraint"]["kind"]))
    if kind != values["constraint"]["kind"]:
        values["constraint"] = {"kind": kind}
    for section, settings in TUNED.get(preset, {}).get(kind, {}).items():
        values[section] = {**values[section], **settings}
    if data is not None:
        values["data"]["source"] = data
    override(values, overrides)
    if isinstance(values["data"], dict) and "source" not in values["data"]:
        raise ConfigError(f"preset '{preset}' brings no data of its own: name yours with --data")
    values.setdefault("name", _own_name(preset, values["data"]))
    return parse_config(values)


def branch_config(
    parent: Config,
    data: str | None = None,
    constraint: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> Config:
    """Build the configuration of a run that begins with a trained model: the model's own.

    Args:
        parent: configuration of the model's run.
        data: another data source.
        constraint: another kind of constraint, with its published settings of training.
        overrides: see `build_config`.

    Raises:
        ConfigError: no such key or value, or the run is to be private.
    """
    values, overrides = parent.model_dump(mode="json"), dict(overrides or {})
    data = overrides.get("data.source", data)
    kind = str(overrides.pop("constraint.kind", constraint or parent.constraint.kind))
    if kind != parent.constraint.kind:
        values["constraint"] = {"kind": kind}
        for key in (*constraint_class(kind).published, "critic_learning_rate"):
            values["training"].pop(key, None)
    if data is not None:
        values["data"] = parent.data.of(data).model_dump(mode="json")
    override(values, overrides)
    config = parse_config(values)
    require_branch(config, parent)
    return config


def require_branch(config: Config, parent: Config) -> None:
    """Require that a run may begin with a trained model.

    Args:
        config: of the run.
        parent: of the model.

    Raises:
        ConfigError: the run is to be private, or its rows to be coded otherwise.
    """
    if config.privacy is not None:
        raise ConfigError(
            "privacy: a private run begins with random weights, since what a trained model has "
            "spent is not accounted for; set privacy=null, or begin without a model"
        )
    if config.selection and parent.data.validation_fraction < config.data.validation_fraction:
        raise ConfigError(
            "selection: the model that the run begins with was trained on the items that would "
            "choose the step; give --steps, or begin with one that left them out"
        )
    if (config.data.columns, config.data.rules) != (parent.data.columns, parent.data.rules):
        raise ConfigError(
            "data.columns, data.rules: rows are coded as the model that the run begins with codes "
            "them; leave these settings as they are there"
        )


def _own_name(preset: str, data: Any) -> str:
    source = data.get("source") if isinstance(data, dict) else None  # what else it is, is refused
    is_own = source == PRESETS[preset]["data"].get("source")
    return preset if is_own else name_of(str(source)) or preset


def name_of(source: str) -> str:
    """Name a model by its data: the stem of the file or folder, in signs that a registry takes.

    >>> name_of("data/Sales 2026.csv.gz"), name_of("s3://bucket/photos/"), name_of("digits")
    ('Sales-2026', 'photos', 'digits')

    Args:
        source: as ``data.source``.

    Returns:
        At most 64 letters, digits, points, hyphens and underscores; empty if nothing is left.
    """
    _, is_url, rest = source.partition("://")  # one that is no URL has a name too
    path = re.split("[?#]", rest)[0] if is_url else os.path.abspath(source)
    is_folder = path.endswith("/") or os.path.isdir(path)
    path = path.rstrip("/")
    # What follows a point in a folder's name is no suffix: sales.2025 are other data.
    stem = os.path.basename(path) if is_folder else Location(source, path, None).name
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()  # é is e
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")[:64]
