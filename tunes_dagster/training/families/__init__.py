"""The model families: one file each, behind the one contract in `base.py`."""
