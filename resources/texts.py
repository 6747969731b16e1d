"""What the fields of resources say: most stand for a setting, whose own text they show."""

from __future__ import annotations

from tunes_dagster.core.settings import Settings
from tunes_dagster.core.texts import text_of


def of_setting(name: str) -> str:
    """Return the text of a field that stands for a setting unless it is left empty."""
    return f"In place of TUNES_{name.upper()}, which an empty field takes. {text_of(Settings, name)}"
