"""What an option means, in one sentence: the docstring below its field, for command line, Launchpad and documents.

OpenAPI documents take it from pydantic, which reads it too (`use_attribute_docstrings`).
"""

from __future__ import annotations

from pydantic import BaseModel


def text_of(model: type[BaseModel], name: str) -> str:
    """Return the text of a model's field on one line; empty where it has none."""
    return " ".join((model.model_fields[name].description or "").split())
