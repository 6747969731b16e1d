"""Turns what pydantic says about a wrong request into sentences: which option, what was given, what it takes."""

from __future__ import annotations

import difflib
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tunes_dagster.core.failures import Failure, FailureCode

Model = TypeVar("Model", bound=BaseModel)
# Patterns of `recipe.py` in words.
_FORMS = {
    r"^[\w-]{1,40}$": "one word of at most 40 letters, digits, _ and -",
    r"^\w[\w -]{0,39}$": "at most 40 letters, digits, spaces, _ and -, a letter or digit first",
}


def checked(model: type[Model], data: Any, what: str = "The request") -> Model:
    """Return `data` as a model.

    Args:
        model: `TuneRequest`, `PromptRequest`, …
        data: Whatever a person or a file said.
        what: What is wrong in the sentence: `The request`, or the name of a file.

    Raises:
        Failure: `INVALID_REQUEST`, naming every option that is wrong and why.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = [explain(model, one) for one in error.errors()]
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"{what} is not valid: {'; '.join(problems)}.",
            "Correct it and send it again; nothing was started.",
            facts={"problems": problems},
        ) from error


def explain(model: type[BaseModel], error: ErrorDetails) -> str:
    """Return one problem as words: `training.rank is 500, but should be less than or equal to 128`."""
    place = [part for part in error["loc"] if part != "function-after"]
    name = ".".join(str(part) for part in place)
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(place[-1]), options_at(model, place[:-1]), n=1)
        return f"{name} is not an option" + (f" (did you mean {close[0]}?)" if close else "")
    if error["type"] == "missing":
        return f"{name} is missing"
    said = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    given = error.get("input")
    if not place and error["type"] == "value_error":  # the model's own words, which name the option
        return said
    name = name or "the whole"
    if form := _FORMS.get((error.get("ctx") or {}).get("pattern", "")):
        return f"{name} is {str(given)[:60]!r}, but should be {form}"
    subject, should, rest = said.partition(" should ")
    if should and subject in ("Input", "String", "List") and isinstance(given, (str, int, float, bool)):
        return f"{name} is {str(given)[:60]!r}, but should {rest.partition(', unable to')[0]}"
    if should and subject in ("Input", "String", "List"):
        return f"{name} should {rest.partition(' or instance of')[0]}"
    return f"{name}: {said[0].lower()}{said[1:]}"


def options_at(model: type[BaseModel], place: list[Any]) -> list[str]:
    """Return the names of the options at a place inside a model (`["training"]`)."""
    for part in place:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = next((t for t in _types(field.annotation) if _is_model(t)), None) if field else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _types(annotation: Any) -> list[Any]:
    return [annotation, *(inner for arg in get_args(annotation) for inner in _types(arg))]


def _is_model(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)
