"""Tunes that go on from another one: which may, and what of their shape it decides."""

from __future__ import annotations

from typing import Any

from tunes_dagster.core.failures import Failure, FailureCode, Problem
from tunes_dagster.core.recipe import TrainingOptions, TuneRequest
from tunes_dagster.families.catalog import BaseModelEntry
from tunes_dagster.registry import Registry, Tune

# What decides the shape of an adapter; a tune that continues another one has to agree with it.
_SHAPE = ("kind", "rank", "targets", "rslora", "dora")
# Kinds whose weights can be trained further.
_CONTINUED = ("lora", "checkpoint")
# What goes on of a tune with words of its own: the adapter; the words are kept, see `training/inherited.py`.
_GOES_ON_AS = {"pti": "lora"}


# What to do about a tune that waiting does not make ready.
_REMEDIES = {
    "failed": "Train it again (`tunes rerun`), or continue another one.",
    "cancelled": "Train it again (`tunes rerun`), or continue another one.",
    "deleted": "Continue another one, or start a tune of its own: what was deleted does not come back.",
    "awaiting_images": "Send its pictures and wait until it is ready.",
}


def _shape_of_import(tune: Tune) -> dict[str, Any]:
    """Return what a tune that goes on from imported weights has to be like; empty for one that was trained.

    Raises:
        Failure: `INVALID_REQUEST` for weights that cannot be trained on.
    """
    if "imported" not in tune.recipe:
        return {}
    shape = tune.recipe["imported"].get("continued_as", {})
    if why := shape.get("why_not"):
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"The tune {tune.title!r}, which was imported, cannot be continued: {why}.",
            "Continue another one, or start a tune of its own and use both in a prompt.",
        )
    return {**shape, "alpha": None, "rslora": False, "resolution": None, "export_scale": None}


def continued(
    registry: Registry, request: TuneRequest, account_id: str
) -> tuple[TuneRequest, dict[str, Any]]:
    """Return a request with the shape of the tune that it continues, and what its recipe says of that tune.

    Raises:
        Failure: `UNKNOWN_TUNE`, `CONFLICT` when that tune has no weights, `INVALID_REQUEST` when the request asks
            for another shape.
    """
    asked = request.training
    if asked.base_tune_id is None:
        return request, {}
    earlier = registry.objects.tune_named(account_id, asked.base_tune_id)
    if earlier.status != "ready" or not earlier.made.weights_key:
        raise Failure(
            FailureCode.CONFLICT,
            f"The tune {earlier.title!r} cannot be continued: it is {earlier.status} and has no finished weights.",
            _REMEDIES.get(earlier.status, "Wait until it is ready."),
        )
    plain = TrainingOptions().model_dump()
    before = {**plain, **earlier.recipe["training"], **_shape_of_import(earlier)}
    learned = before["kind"]
    before["kind"] = _GOES_ON_AS.get(learned, learned)
    if asked.kind == learned:  # the same as that tune's is no other wish
        asked = asked.model_copy(update={"kind": before["kind"]})
    # A kind that was named is meant, also when it is the default.
    named = {"kind"} & asked.model_fields_set
    wrong = [
        Problem(f"training.{name}", f"is {getattr(asked, name)!r}, but that tune has {before[name]!r}")
        for name in _SHAPE
        if getattr(asked, name) not in ({before[name]} if name in named else {plain[name], before[name]})
    ]
    if wrong or before["kind"] not in _CONTINUED:
        what = "; ".join(map(str, wrong)) or f"that tune is of the kind {before['kind']!r}"
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"The tune {earlier.title!r} cannot be continued so: {what}.",
            "Tunes of the kinds lora and checkpoint are continued by their own kind, those of the kind pti as a lora "
            "that keeps their words, with the same rank and targets; leave these options out.",
            problems=tuple(wrong),
        )
    shape = {name: before[name] for name in _SHAPE}
    shape["alpha"] = before["alpha"] if asked.alpha is None else asked.alpha
    shape["resolution"] = before["resolution"] if asked.resolution is None else asked.resolution
    training = asked.model_copy(update={**shape, "base_tune_id": earlier.id})
    base = request.base if "base" in request.model_fields_set else earlier.base
    # The weights know the subject by that tune's token.
    token = (
        request.token if "token" in request.model_fields_set else earlier.recipe.get("token", request.token)
    )
    continues = {
        "tune_id": earlier.id,
        "branch": earlier.base_id,
        "weights_key": earlier.made.weights_key,
        "recipe_hash": earlier.made.weights_recipe_hash,
    }
    return request.model_copy(update={"training": training, "base": base, "token": token}), continues


def check_same_base(continues: dict[str, Any], entry: BaseModelEntry) -> None:
    """Refuse another base than that of the tune which is continued.

    Raises:
        Failure: `INVALID_REQUEST`.
    """
    if continues and continues["branch"] != entry.base_id:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"The tune {continues['tune_id']} was made on {continues['branch']}, not on {entry.base_id}.",
            "Leave `base` out: a tune is continued on its own base.",
        )
