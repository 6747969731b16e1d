"""The library of tunes-dagster: plain Python, importable without Dagster and without torch."""

__version__ = "0.1.0"
