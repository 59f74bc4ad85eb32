"""Data sets: read, checked, split and inspected."""
