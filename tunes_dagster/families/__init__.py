"""Base models: a file for each family behind the contract in `base.py`, the catalog, what pulls and sizes bases."""
