"""Models: networks, constraints, Lipschitz bounds, artifacts and their registry.

Modules import only what stands above them in this list:
`errors`, `images`, `formats`, `networks`, `lipschitz`, `constraints`, `config`, `sampling`,
`folding`, `refinement`, `record`, `model`, `artifact`, `registry`.
"""
