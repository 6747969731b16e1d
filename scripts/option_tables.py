"""Writes the tables of options into docs/ from the models; a test holds the pages to them.

.venv/bin/python scripts/option_tables.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from tunes_dagster.core.recipe import (
    DatasetOptions,
    PromptRequest,
    RenderSettings,
    Sources,
    TrainingOptions,
    TuneRequest,
)
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.texts import text_of
from tunes_dagster.gateway.options import GatewayOptions

_DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = (_DOCS / "configuration.md", _DOCS / "gateway.md")
MODELS: dict[str, tuple[type[BaseModel], str]] = {
    "TuneRequest": (TuneRequest, ""),
    "Sources": (Sources, "sources."),
    "DatasetOptions": (DatasetOptions, "dataset."),
    "TrainingOptions": (TrainingOptions, "training."),
    "PromptRequest": (PromptRequest, "prompts[]."),
    "RenderSettings": (RenderSettings, "settings."),
    "Settings": (Settings, "TUNES_"),
    "GatewayOptions": (GatewayOptions, "TUNES_GATEWAY_"),
}
_BLOCK = re.compile(r"(<!-- options: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(model: type[BaseModel], prefix: str) -> str:
    """Return one model's options as a markdown table: name, default, limits, meaning."""
    lines = ["| option | default | takes | meaning |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        shown = f"{prefix}{name.upper() if prefix.isupper() else name}"
        cells = (f"`{shown}`", _default(field), _limits(field), text_of(model, name))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel | dict) or value in ([], ""):
        return ""
    return "" if value is None else f"`{value}`"


def _limits(field: Any) -> str:
    bounds = []
    for constraint in field.metadata:
        for sign, mark in (
            ("ge", "≥ "),
            ("gt", "> "),
            ("le", "≤ "),
            ("lt", "< "),
            ("multiple_of", "multiple of "),
        ):
            value = getattr(constraint, sign, None)
            if value is not None:
                bounds.append(f"{mark}{value:g}" if isinstance(value, float) else f"{mark}{value}")
    choices = [
        choice for part in (field.annotation, *get_args(field.annotation)) for choice in _choices(part)
    ]
    return ", ".join(bounds) or ", ".join(f"`{choice}`" for choice in choices)


def _choices(annotation: Any) -> list[Any]:
    return list(get_args(annotation)) if "Literal" in str(getattr(annotation, "__origin__", "")) else []


def page(text: str) -> str:
    """Return the page with its tables as the models say."""
    return _BLOCK.sub(lambda block: block[1] + "\n" + table(*MODELS[block[2]]) + "\n" + block[3], text)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
