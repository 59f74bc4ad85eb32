"""The training engine. Read `loop` first, then `step` and `runs`; `stacked` repeats `loop`."""
