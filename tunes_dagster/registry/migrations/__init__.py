"""Alembic's scripts: `env.py` and one revision per file in `versions`."""
