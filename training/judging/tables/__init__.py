"""Judging a table: rows as people have them, not the codes that networks see.

- `rows`: real and generated rows as arrays that figures take
- `likeness`: columns' shapes, pairs' trends, missing values and rare categories
- `uses`: what a model learns from generated rows, and how well one tells them from real ones
- `copies`: generated rows that are training rows, or too near to them
- `copula`: the Gaussian copula, the baseline beside every figure
- `judge`: all figures of a table's model
"""
