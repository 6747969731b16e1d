"""Turns what pydantic says about a wrong request into sentences: which option, what was given, what it takes."""

from __future__ import annotations

import difflib
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from tunes_dagster.core.failures import Problem, refusal

Model = TypeVar("Model", bound=BaseModel)
# The type of an error that a validator of ours raises about one option.
WRONG = "wrong_option"
# What pydantic asks for, in the words of somebody who writes YAML or JSON.
_KINDS = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    "int_parsing_size": "a whole number of fewer digits",
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("string_type", "string_unicode"), "text"),
    **dict.fromkeys(("list_type", "tuple_type", "set_type"), "a list"),
    **dict.fromkeys(
        ("dict_type", "mapping_type", "model_type", "model_attributes_type"),
        "names with values (as in `rank: 8`)",
    ),
}
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
        raise refusal(f"{what} is not valid", [explain(model, one) for one in error.errors()]) from error


def wrong(option: str, said: str) -> PydanticCustomError:
    """Return what a validator of a whole model raises about one of its options: `wrong("mask_image", "needs …")`."""
    return PydanticCustomError(WRONG, "{option} {said}", {"option": option, "said": said})


def explain(model: type[BaseModel], error: ErrorDetails) -> Problem:
    """Return one problem: `training.rank`, `is 500, but should be less than or equal to 128`."""
    place = [part for part in error["loc"] if part != "function-after"]
    context = error.get("ctx") or {}
    if error["type"] == WRONG:
        return Problem(".".join(map(str, [*place, context["option"]])), context["said"])
    said = _explained(model, error, place)
    whole = not place and error["type"] != "value_error"
    return Problem(".".join(map(str, place)), f"the whole {said}" if whole else said)


def _explained(model: type[BaseModel], error: ErrorDetails, place: list[Any]) -> str:
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(place[-1]), options_at(model, place[:-1]), n=1)
        return "is not an option" + (f" (did you mean {close[0]}?)" if close else "")
    if error["type"] == "missing":
        return "is missing"
    said = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    given = error.get("input")
    if not place and error["type"] == "value_error":  # the model's own words, which name the option
        return said
    if form := _FORMS.get((error.get("ctx") or {}).get("pattern", "")):
        return f"is {str(given)[:60]!r}, but should be {form}"
    if kind := _KINDS.get(error["type"]):
        is_ = f"is {str(given)[:60]!r}, but " if isinstance(given, (str, int, float, bool)) else ""
        return f"{is_}should be {kind}"
    subject, should, rest = said.partition(" should ")
    if should and subject in ("Input", "String", "List") and isinstance(given, (str, int, float, bool)):
        return f"is {str(given)[:60]!r}, but should {rest}"
    if should and subject in ("Input", "String", "List"):
        return f"should {rest}"
    return f"is not valid: {said[0].lower()}{said[1:]}"


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
