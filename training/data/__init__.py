"""Data: what is trained on, how it is read, split and looked at."""
