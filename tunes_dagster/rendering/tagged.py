"""The tunes that the tags of a prompt name (`<lora:…>`, `<faceid:…>`): looked up, or refused by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.rendering.prompts import named_tunes, tag_of
from tunes_dagster.rendering.siblings import ADAPTERS

if TYPE_CHECKING:
    from tunes_dagster.families.catalog import BaseModelEntry, Catalog
    from tunes_dagster.registry import Registry


def kinds_named(text: str, registry: Registry | None) -> list[str]:
    """Return the kinds of the tunes that tags in a text name, as far as they are known (`tune_finder` refuses)."""
    kinds = ["faceid"] * bool(named_tunes(text, "faceid"))
    if registry is None:
        return kinds
    for name in named_tunes(text):
        with contextlib.suppress(Failure):
            kinds.append(registry.get_tune(name).kind)
    return kinds


def tune_finder(
    registry: Registry, catalog: Catalog, entry: BaseModelEntry, account_id: str
) -> Callable[[str, str], Mapping[str, str]]:
    """Return what looks up the tunes that tags (`lora`, `faceid`) name, and returns their characteristics.

    It raises `UNKNOWN_TUNE` for tunes of others (the operator's own account sees all), `CONFLICT` for one that is
    not ready, `INVALID_REQUEST` for one of another base or kind. `entry` may be the sibling of the tune's base.
    """

    def find(name: str, tag: str) -> Mapping[str, str]:
        tune = registry.get_tune(name)
        if tune.account_id != account_id and account_id != "local":
            raise Failure(
                FailureCode.UNKNOWN_TUNE, f"There is no tune {name!r}.", f"Check the tag <{tag}:…>."
            )
        if tag != (right := tag_of(tune.kind)):
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"The tune {name!r} is of the kind {tune.kind!r}, which is not used as <{tag}:…>.",
                f"Write <{right}:{name}:1>.",
            )
        if not catalog.fits(catalog.resolve(tune.branch), entry.branch) or (
            tune.branch != entry.branch and tune.kind not in ADAPTERS
        ):
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"The tune {name!r} was made on {tune.branch!r}, but the prompt renders on {entry.branch!r}.",
                "Name tunes of one base in a prompt.",
            )
        if tune.status != "ready":
            raise Failure(
                FailureCode.CONFLICT,
                f"The tune {name!r} cannot be used: it is {tune.status}.",
                "Wait until it is ready.",
            )
        return dict(tune.request.get("characteristics") or {})

    return find
