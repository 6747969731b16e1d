"""What differs between two tunes: pictures, captions, settings, base, versions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunes_dagster.core.store import Store
from tunes_dagster.intake.captions import CaptionTable
from tunes_dagster.intake.training_set import TrainingSet
from tunes_dagster.registry import Tune
from tunes_dagster.training.export import recipe_beside

NOTHING = "-"
# Parts of a recipe that are compared by their own rules, or that only repeat others.
_APART = ("pictures", "captions", "class_name")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing that two tunes do not have in common.

    Attributes:
        kind: base, settings, subject, pictures, captions or versions.
        what: Name of the option, or of the picture.
        first: What the first tune has; `-` when nothing.
        second: What the second one has.
    """

    kind: str
    what: str
    first: str
    second: str


def recipe_of(tune: Tune, store: Store) -> dict[str, Any]:
    """Return the recipe of a tune: the one in its weights, else what is known before it is trained."""
    key = tune.made.trained_key
    if key.endswith(".safetensors") and store.exists(key):
        found = recipe_beside(store, key)
        if found:
            return found
    recipe = {**tune.recipe, "token": tune.token, "base": tune.base_id}
    try:
        dataset, texts = TrainingSet.load(store, tune.id), CaptionTable.load(store, tune.id).texts()
    except FileNotFoundError:
        return recipe
    recipe["pictures"] = [
        {"key": item.key, "caption": texts.get(item.hash, ""), "bucket": list(item.bucket), "crop": item.crop}
        for item in dataset.training
    ]
    return recipe


def differences(first: Tune, second: Tune, store: Store) -> list[Difference]:
    """Return what differs between two tunes, grouped by kind; empty when they were made the same way."""
    one, other = recipe_of(first, store), recipe_of(second, store)
    found = [
        Difference(kind=_kind(name), what=name.removeprefix("training."), first=_show(a), second=_show(b))
        for name, a, b in _unlike(dict(_flat(one)), dict(_flat(other)))
    ]
    names = {**_names(first, store), **_names(second, store)}
    found += _pictures(one.get("pictures", []), other.get("pictures", []), names)
    kinds = ("base", "subject", "settings", "pictures", "captions", "versions")
    return sorted(found, key=lambda one: (kinds.index(one.kind), one.what))


def _flat(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in recipe.items():
        if not prefix and name in _APART:
            continue
        if name == "steps_done" and value == recipe["training"]["steps"]:
            continue  # all that were asked for
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _unlike(one: dict[str, Any], other: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in {**one, **other}:
        a, b = one.get(name), other.get(name)
        if a != b:
            yield name, a, b


def _kind(name: str) -> str:
    if name in ("base", "branch", "repo_id", "revision", "base_fingerprint") or name.startswith("continues."):
        return "base"
    if name in ("name", "token"):
        return "subject"
    if name in ("version", "device", "dtype") or name.startswith("libraries."):
        return "versions"
    return "settings"


def _names(tune: Tune, store: Store) -> dict[str, str]:
    try:
        return {item.key: item.name for item in TrainingSet.load(store, tune.id).items}
    except FileNotFoundError:
        return {}


def _pictures(
    one: list[dict[str, Any]], other: list[dict[str, Any]], names: Mapping[str, str]
) -> Iterator[Difference]:
    """Yield pictures that only one has, and what is done differently with those that both have."""

    def listed(pictures: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
        return {(picture["key"], json.dumps(picture.get("crop"))): picture for picture in pictures}

    mine, theirs = listed(one), listed(other)
    places = list({**mine, **theirs})
    for place in places:
        key, crop = place
        name = names.get(key, key.rpartition("/")[2][:16])
        if sum(other_key == key for other_key, _ in places) > 1:
            name += " whole" if crop == "null" else f" {crop}"
        a, b = mine.get(place), theirs.get(place)
        if a is None or b is None:
            yield Difference(
                kind="pictures", what=name, first="there" if a else NOTHING, second="there" if b else NOTHING
            )
            continue
        if a["caption"] != b["caption"]:
            yield Difference(kind="captions", what=name, first=a["caption"], second=b["caption"])
        if list(a["bucket"]) != list(b["bucket"]):
            yield Difference(
                kind="pictures", what=f"{name}, size", first=_show(a["bucket"]), second=_show(b["bucket"])
            )


def _show(value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
