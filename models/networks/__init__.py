"""Generators and critics, and the layers that they are made of."""

from models.networks.build import Critic, build_critic, build_generator, build_networks
from models.networks.parts import ACTIVATIONS, image_sizes
from models.networks.piecewise import GroupSort
from models.networks.settings import (
    ARCHITECTURES,
    KINDS,
    Activation,
    Architecture,
    CriticConfig,
    GeneratorConfig,
    NetworkConfig,
    Normalization,
    Shape,
)

__all__ = [
    "ACTIVATIONS",
    "ARCHITECTURES",
    "KINDS",
    "Activation",
    "Architecture",
    "Critic",
    "CriticConfig",
    "GeneratorConfig",
    "GroupSort",
    "NetworkConfig",
    "Normalization",
    "Shape",
    "build_critic",
    "build_generator",
    "build_networks",
    "image_sizes",
]
