"""YAML that people write, read so that a string stays the string it was written as.

YAML takes `no` for false, `0123` for 83 and `2024-01-01` for a date. Where an option wants a string, what was written
counts: numbers remember it, and words like `no` are words, which options that are true or false understand.
"""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

_WORDS = frozenset({"yes", "no", "on", "off"})


class WrittenInt(int):
    """A whole number that remembers how it was written."""

    text: str

    def __str__(self) -> str:
        return self.text


class WrittenFloat(float):
    """A number that remembers how it was written."""

    text: str

    def __str__(self) -> str:
        return self.text


class Loader(yaml.SafeLoader):
    """A safe loader whose numbers remember how they were written."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """Return the tag of a node; dates and words for true and false are strings."""
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]  # the stubs leave it open
        if kind is yaml.ScalarNode and implicit[0]:
            dated = tag == "tag:yaml.org,2002:timestamp"
            if dated or (tag == "tag:yaml.org,2002:bool" and value.lower() in _WORDS):
                return "tag:yaml.org,2002:str"
        return tag


def _integer(loader: Loader, node: yaml.ScalarNode) -> int:
    made = WrittenInt(loader.construct_yaml_int(node))
    made.text = node.value
    return made


def _real(loader: Loader, node: yaml.ScalarNode) -> float:
    made = WrittenFloat(loader.construct_yaml_float(node))
    made.text = node.value
    return made


Loader.add_constructor("tag:yaml.org,2002:int", _integer)
Loader.add_constructor("tag:yaml.org,2002:float", _real)


def read_value(text: str) -> Any:
    """Return what `--set name=TEXT` means: YAML; text that is none, or only happens to look like it, is a string."""
    plain = text.strip()
    if plain.startswith(("#", "&", "*", "!", "%", "@", "`")):
        return text
    try:
        value = yaml.load(text, Loader=Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError):
        return text
    return text if isinstance(value, dict | list) and not plain.startswith(("{", "[")) else value


def as_wanted(value: Any, annotation: Any) -> Any:
    """Return a value with each number as it was written where the annotation wants a string and no number."""
    kinds = _kinds(annotation)
    if isinstance(value, WrittenInt | WrittenFloat):
        return value.text if _text(kinds) and not {int, float} & set(kinds) else value
    for kind in kinds:
        inner = get_args(kind)
        if isinstance(value, dict) and get_origin(kind) is dict:
            return {as_wanted(k, inner[0]): as_wanted(v, inner[1]) for k, v in value.items()}
        if isinstance(value, list) and get_origin(kind) is list:
            return [as_wanted(one, inner[0]) for one in value]
    return value


def _text(kinds: list[Any]) -> bool:
    return any(
        kind is str or (get_origin(kind) is Literal and all(isinstance(one, str) for one in get_args(kind)))
        for kind in kinds
    )


def _kinds(annotation: Any) -> list[Any]:
    """Return the types that an annotation allows."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for one in get_args(annotation) for kind in _kinds(one)]
    return [annotation]
