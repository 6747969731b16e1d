"""Flags made from the option models, so that an option, its type, its limits and its help are written once.

`--learning-rate` is `TrainingOptions.learning_rate`, with the docstring below that field as its help. Limits are not
repeated here either: values go into the model, which refuses wrong ones by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Optional, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.texts import text_of
from tunes_dagster.core.written import read_value

Account = Annotated[str, typer.Option("--account", help="Account whose tunes are meant.")]
Which = Annotated[str, typer.Argument(help="Tune by number, id or title.")]


def called(tune: Any) -> str:
    """Return how commands name a tune: its number, and its account where that is not the default."""
    return f"{tune.number}" if tune.account_id == "local" else f"{tune.number} --account {tune.account_id}"


def takes(**groups: type[BaseModel]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command one flag per option of some models.

    The decorated function gets one dict per group, holding the options that were given.

    Args:
        groups: Parameter of the function → model.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(function)
        hints = get_type_hints(function, include_extras=True)
        parameters = [
            p.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
            for name, p in own.parameters.items()
            if name not in groups
        ]
        flags = {group: _flags(model, group) for group, model in groups.items()}
        parameters += [flag for some in flags.values() for flag in some]

        def command(**values: Any) -> Any:
            for group, some in flags.items():
                given = {flag.name: values.pop(flag.name) for flag in some}
                values[group] = {name: value for name, value in given.items() if value is not None}
            return function(**values)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _flags(model: type[BaseModel], group: str) -> list[inspect.Parameter]:
    flags = []
    for name, field in model.model_fields.items():
        kind = _without_none(field.annotation)
        said = text_of(model, name)
        if field.default is not None and field.default != "":
            said = f"{said} Default: {field.default}."
        option = typer.Option(
            f"--{name.replace('_', '-')}" + (f"/--no-{name.replace('_', '-')}" if kind is bool else ""),
            help=said,
            rich_help_panel=f"{group.capitalize()} options",
            show_default=False,
        )
        flags.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[Optional[kind], option],  # noqa: UP045 - built at run time
            )
        )
    return flags


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) is not None and type(None) in get_args(annotation):
        return next(inner for inner in get_args(annotation) if inner is not type(None))
    return annotation


def assignments(pairs: list[str]) -> dict[str, Any]:
    """Return `["training.rank=8", "labels.who=me"]` as a nested dict; values are read as YAML.

    Raises:
        Failure: `INVALID_REQUEST` for a pair without `=`.
    """
    result: dict[str, Any] = {}
    for pair in pairs:
        path, equals, value = pair.partition("=")
        if not equals or not path.strip():
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"{pair!r} is not an assignment.",
                "Write --set training.rank=8, with the names that tune.yaml uses.",
            )
        place = result
        *groups, last = path.strip().split(".")
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = read_value(value)
    return result


def merged(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """Return two nested dicts as one; where both say something, `high` wins, and an empty dict of its own empties."""
    result = dict(low)
    for key, value in high.items():
        old = result.get(key)
        result[key] = (
            merged(old, value) if isinstance(old, dict) and isinstance(value, dict) and value else value
        )
    return result
