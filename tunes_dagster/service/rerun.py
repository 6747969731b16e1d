"""Training a tune again: a new tune with the same pictures, captions and recipe, changed only where asked.

The prepared dataset is taken over as it lies in the store, with the captions as they are now, so nothing is fetched
or captioned again and latents come from the cache. On the same device the same recipe gives the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.failures import Failure, FailureCode, detail_of
from tunes_dagster.core.ids import new_id
from tunes_dagster.core.recipe import TrainingOptions, TuneRequest
from tunes_dagster.core.store import Store
from tunes_dagster.core.validation import checked
from tunes_dagster.core.wishes import Wishes
from tunes_dagster.families.catalog import BaseModelEntry
from tunes_dagster.families.presets import changed
from tunes_dagster.intake.captions import CaptionTable
from tunes_dagster.intake.manifest import Manifest
from tunes_dagster.intake.training_set import TrainingSet
from tunes_dagster.registry import Tune
from tunes_dagster.registry.retrying import may_have_been_kept
from tunes_dagster.registry.tunes import NewTune
from tunes_dagster.service.checks import check_training
from tunes_dagster.service.quote import tune_price
from tunes_dagster.service.references import named_by

if TYPE_CHECKING:
    from tunes_dagster.service.installation import Installation

# What the dataset was prepared for; another value needs another dataset.
_OF_THE_DATASET = ("resolution",)


def rerun(
    installation: Installation,
    tune: Tune,
    changes: Mapping[str, Any] | None = None,
    title: str = "",
) -> Tune:
    """Hand in a tune again.

    Args:
        installation: Where the dataset lies and the new row goes; says what the base's options are.
        tune: The tune to train again; it stays as it is.
        changes: Training options that are to differ.
        title: Of the new tune; empty derives one.

    Returns:
        The new tune, prepared and waiting to be trained.

    Raises:
        Failure: `CONFLICT` when there is no dataset, `INVALID_REQUEST` for options that are unknown, out of range or
            not of training, `BASE_NOT_INSTALLED`, `OUT_OF_CREDITS`: the same work costs the same again.
    """
    registry, store = installation.registry, installation.store
    _check_trained(tune)
    entry, _folder = installation.usable(tune.base_id)
    options = _options(tune, changes or {}, entry)
    asked = TuneRequest.model_validate(tune.request)
    request = asked.model_copy(
        update={
            "title": title or f"{tune.title} (again)",
            "training": options,
            "prompts": [],
            "callback_url": None,
        }
    )
    wishes = Wishes(installation.settings.unmet_wishes)
    request = check_training(installation, request, entry, wishes)
    recipe = {**tune.recipe, "training": entry.training_options(request.training).model_dump(mode="json")}
    chosen = new_id("tune")
    if not tune.blobs_named:
        registry.blobs.named(tune.id, named_by(store, tune))
    _take_over(store, tune, chosen)

    try:
        new = NewTune(
            request=request,
            id=chosen,
            base_id=tune.base_id,
            recipe=recipe,
            account_id=tune.account_id,
            origin="cli",
            status="prepared",
            price=tune_price(installation.prices, installation.catalog, request),
            warnings=wishes.told(),
            again=tune.id,
        )
        return registry.tunes.accept(new).tune
    except Failure as refused:
        if not may_have_been_kept(refused):
            store.delete_prefix(f"tunes/{chosen}")
        raise


def _check_trained(tune: Tune) -> None:
    """Refuse what cannot be trained again: what was deleted, and what was never trained here."""
    if tune.deleted_at is not None:
        raise Failure(FailureCode.CONFLICT, f"The tune {tune.id} was deleted meanwhile.", "Make a new one.")
    if "imported" in tune.recipe:
        raise Failure(
            FailureCode.CONFLICT,
            f"The tune {tune.title!r} was imported, not trained here.",
            "Import its file again, or continue it on pictures with training.base_tune_id.",
        )


def _options(tune: Tune, changes: Mapping[str, Any], entry: BaseModelEntry) -> TrainingOptions:
    """Return the recipe's training options with the changes in them."""
    refused = [name for name in _OF_THE_DATASET if name in changes]
    if refused:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"{refused[0]} cannot be changed for a tune that is trained again: its dataset was made for the old one.",
            "Hand the pictures in anew with `tunes train`.",
        )
    return checked(
        TrainingOptions,
        changed(tune.recipe["training"], changes, entry.training_options),
        "The training options",
    )


def _take_over(store: Store, tune: Tune, chosen: str) -> None:
    """Write the dataset of a tune under another one's id; pictures are shared, they lie under their content."""
    try:
        dataset = TrainingSet.load(store, tune.id)
        captions = CaptionTable.load(store, tune.id)
    except FileNotFoundError as error:
        raise Failure(
            FailureCode.CONFLICT,
            f"The dataset of {tune.title!r} is not there.",
            "A tune can be trained again once its pictures were prepared, and until it is deleted.",
            detail_of(error),
        ) from error
    dataset.model_copy(update={"tune_id": chosen}).save(store)
    captions.model_copy(update={"tune_id": chosen, "versions": []}).save(store, f"Taken over from {tune.id}.")
    if store.exists(Manifest.store_key(tune.id)):
        Manifest.load(store, tune.id).model_copy(update={"tune_id": chosen}).save(store)
