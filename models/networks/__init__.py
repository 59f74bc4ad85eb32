"""Generators and critics, and the layers that they are made of."""

# What other rooms import.
# ruff: noqa: F401
# mypy: implicit-reexport

from models.networks.build import build_critic, build_generator, build_networks
from models.networks.parts import ACTIVATIONS, Critic, image_sizes
from models.networks.piecewise import GroupSort
from models.networks.settings import (
    ARCHITECTURES,
    KINDS,
    SIDES,
    CriticConfig,
    GeneratorConfig,
    Shape,
    size_problem,
)
