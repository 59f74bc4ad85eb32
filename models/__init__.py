"""Models: networks, constraints, Lipschitz bounds, artifacts and their registry.

tests/test_models_order.py holds the order of these modules: each imports only earlier ones.
"""
