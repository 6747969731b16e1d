"""Settings that are read from the environment: what is wrong there becomes sentences that name the variables."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast, get_origin

import yaml
from pydantic import AfterValidator, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tunes_dagster.core.failures import Failure, FailureCode, detail_of
from tunes_dagster.core.urls import parse_url
from tunes_dagster.core.validation import explain

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_Read = TypeVar("_Read", bound="FromEnvironment")
# How a variable of each kind is written; secrets of a store stand among its options.
_WRITTEN: Mapping[Any, str] = {
    list: 'a list in JSON (["a", "b"])',
    tuple: "a list of numbers in JSON ([5, 30])",
    dict: 'an object in JSON ({"name": "value"})',
}
# What no message may show of a value.
_UNSHOWN = frozenset({"store_options", "secret"})
_PASSWORD = re.compile(r"//[^@/\s]+@")
_DATABASES = ("sqlite", "postgresql")


class FromEnvironment(BaseSettings):
    """Settings whose variables begin with `env_prefix`. Numbers are finite; lists and objects are JSON."""

    model_config = SettingsConfigDict(
        extra="ignore", enable_decoding=False, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _from_json(cls, value: Any, info: ValidationInfo) -> Any:
        """Read a list or an object that was written as text."""
        kind = get_origin(cls.model_fields[str(info.field_name)].annotation)
        if kind not in _WRITTEN or not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError(f"should be {_WRITTEN[kind]}") from None


def read_environment(kind: type[_Read], page: str) -> _Read:
    """Return the settings that the environment holds.

    Args:
        kind: Of the settings.
        page: That says what they mean.

    Raises:
        Failure: `INVALID_REQUEST`, naming each variable that is wrong, its value and what is allowed.
    """
    try:
        return kind()
    except ValidationError as error:
        prefix = kind.model_config.get("env_prefix", "")
        said = [_sentence(kind, prefix, one) for one in error.errors()]
    # Not as its cause: whoever prints it (Dagster does) would print pydantic's pages with it.
    raise Failure(FailureCode.INVALID_REQUEST, " ".join(said), f"Correct it in the environment; see {page}.")


def _sentence(kind: type[_Read], prefix: str, error: Any) -> str:
    """Return what is wrong with one variable: `TUNES_PROFILE is 'x', but should be 'embedded' or 'production'.`"""
    field = str(error["loc"][0])
    name = prefix + field.upper()
    inside = ".".join(map(str, error["loc"][1:]))
    problem = explain(kind, cast("ErrorDetails", {**error, "loc": (field,)})).message
    if error["type"] == "value_error":  # a check of ours, which says what should be
        problem = f"is {str(error['input'])[:200]!r}, but {error['ctx']['error']}"
    if problem.startswith("should "):  # a list is what is wrong, not something in it
        problem = f"is {os.environ.get(name, '')[:200]!r}, but {problem}"
    if field in _UNSHOWN:
        problem = "is not valid: it " + problem.partition(", but ")[2]
    problem = _PASSWORD.sub("//…@", problem)
    return f"{name}{f' ({inside})' if inside else ''} {problem}."


def _is_file_place(value: str) -> str:
    """Refuse a place for files that no folder and no filesystem of fsspec can be."""
    scheme, there, _rest = value.partition("://")
    if not there:
        path = Path(value).expanduser()
        found = next((one for one in (path, *path.parents) if one.exists()), path)
        if value and (not found.is_dir() or not os.access(found, os.R_OK | os.X_OK)):
            raise ValueError(f"should be a folder: {found} is none, or may not be read")
        return value
    from fsspec.registry import known_implementations

    known = known_implementations.get(scheme)
    if known is None:
        raise ValueError("should be a folder or a URL that fsspec knows (s3://…, gs://…, abfs://…)")
    if importlib.util.find_spec(known["class"].partition(".")[0]) is None:
        raise ValueError(f"should be of a kind whose library is installed: {known.get('err', scheme)}")
    return value


def _is_database(value: str) -> str:
    """Refuse a database that the registry cannot be in."""
    if value and value.partition("://")[0].partition("+")[0] not in _DATABASES:
        raise ValueError("should begin with sqlite:/// or postgresql://")
    return value


def _is_web_address(value: str) -> str:
    """Refuse what is no address of http."""
    try:
        if value:
            parse_url(value)
    except Failure:
        raise ValueError("should be an address that begins with http:// or https://") from None
    return value


def _is_device(value: str) -> str:
    """Refuse what torch has no device for; whether it is here is seen when it is used."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", value):
        raise ValueError("should be auto, cpu, mps, cuda or one of them by number (cuda:1)")
    return value


Device = Annotated[str, AfterValidator(_is_device)]
FilePlace = Annotated[str, AfterValidator(_is_file_place)]
Database = Annotated[str, AfterValidator(_is_database)]
WebAddress = Annotated[str, AfterValidator(_is_web_address)]


def read_overlay(variable: str, path: str) -> dict[str, Any]:
    """Return the YAML file that a variable names, an object.

    Raises:
        Failure: `INVALID_REQUEST`, naming the variable and the file.
    """
    try:
        raw = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8")) or {}
        if not isinstance(raw, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"{variable} is {path!r}, but should be a YAML file with entries by name that can be read.",
            "Correct it in the environment; see docs/configuration.md.",
            detail_of(error, path),
        ) from None
    return raw
