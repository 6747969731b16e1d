"""What a person can type into the Launchpad: the pydantic models of the library as Dagster configs.

Every field is optional and empty by default, so that a click on Materialize needs no configuration; what is
filled in overrides the recipe. A choice that does not exist is red before the launch. Ranges are said only, since
Dagster's config knows none: the library's own model checks them and names a wrong value.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from types import NoneType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import dagster as dg
from pydantic import BaseModel, Field, create_model

from tunes_dagster.core.texts import text_of
from tunes_dagster.core.validation import checked


def _plain(annotation: Any, name: str) -> Any:
    """Return the type that Dagster's config system has for a field: no None, choices of texts as an enum."""
    if get_origin(annotation) in (Union, type(int | str)):
        inner = [arg for arg in get_args(annotation) if arg is not NoneType]
        return _plain(inner[0], name)
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0], name)
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        return Enum(name, {one: one for one in choices}) if all(type(o) is str for o in choices) else str
    return annotation


def _choices(annotation: Any) -> str:
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is Literal:
            return f" One of: {', '.join(map(str, get_args(part)))}."
    return ""


def _limits(metadata: Sequence[Any]) -> str:
    """Return the range of a number: Dagster's own check of a config knows none."""
    signs = {
        "ge": "at least",
        "gt": "more than",
        "le": "at most",
        "lt": "less than",
        "multiple_of": "a multiple of",
    }
    found = [
        f"{said} {getattr(one, key):g}"
        for one in metadata
        for key, said in signs.items()
        if hasattr(one, key)
    ]
    return f" Takes {', '.join(found)}." if found else ""


def mirror(model: type[BaseModel], name: str, only: tuple[str, ...] = ()) -> type[dg.Config]:
    """Return a config with the fields of a pydantic model, each optional, with the model's own texts.

    Args:
        model: A flat model of the library.
        name: Of the new class.
        only: Fields to take; empty takes all.
    """
    fields: dict[str, Any] = {}
    for key, info in model.model_fields.items():
        if only and key not in only:
            continue
        text = text_of(model, key) + _choices(info.annotation) + _limits(info.metadata)
        kind = _plain(info.annotation, f"{name}_{key}")
        fields[key] = (kind | None, Field(default=None, description=text))
    config: type[dg.Config] = create_model(name, __base__=dg.Config, __doc__=model.__doc__, **fields)
    return config


def filled_in(config: dg.Config, *leave_out: str) -> dict[str, Any]:
    """Return the values that a person typed in."""
    values = {key: getattr(config, key) for key in type(config).model_fields if key not in leave_out}
    values = {key: value.value if isinstance(value, Enum) else value for key, value in values.items()}
    return {key: value for key, value in values.items() if value not in (None, [], {}, "")}


def merged(model: BaseModel, changes: dict[str, Any]) -> Any:
    """Return a copy of a model with some values changed, checked again.

    Raises:
        Failure: `INVALID_REQUEST` naming each wrong value and what it may be.
    """
    return checked(type(model), {**model.model_dump(), **changes}, "What the Launchpad says")
