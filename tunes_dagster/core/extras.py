"""Packages that only some installations need, and the extras of this one that bring them."""

from __future__ import annotations

from importlib.util import find_spec

from tunes_dagster.core.failures import Failure, FailureCode

# Package, as it is imported → the extra of `pyproject.toml` that brings it, and what it is for.
EXTRAS = {
    "bitsandbytes": ("gpu", "8-bit optimizers and quantized bases"),
    "gfpgan": ("restore", "restored faces"),
    "openpyxl": ("xlsx", "tables as XLSX"),
    "prodigyopt": ("prodigy", "the optimizer prodigy"),
    "psycopg2": ("postgres", "PostgreSQL"),
    "pyarrow": ("parquet", "tables as Parquet"),
}


def has(package: str) -> bool:
    """Whether a package is installed."""
    return find_spec(package) is not None


def how_to_get(package: str) -> str:
    """Return the command that installs a package."""
    return f"pip install 'tunes-dagster[{EXTRAS[package][0]}]'"


def missing(package: str, what: str, instead: str, detail: str = "") -> Failure:
    """Return the failure of something that needs a package which cannot be imported.

    Args:
        package: One of `EXTRAS`.
        what: Needs it; the beginning of a sentence.
        instead: What to do without it; the end of a sentence.
        detail: What importing it said.
    """
    return Failure(
        FailureCode.INVALID_REQUEST,
        f"{what} needs the package {package}, which cannot be imported.",
        f"Install the extra: {how_to_get(package)}, or {instead}.",
        detail,
    )
