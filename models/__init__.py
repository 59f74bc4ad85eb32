"""Models: networks, constraints, Lipschitz bounds, artifacts and their registry.

tests/test_models_order.py holds the order of these modules: each imports only earlier ones.
"""

__version__ = "0.2.0"
"""The project's version; not asked of the installation, since a clone works without one."""
