"""Tunes and prompts that start in the Launchpad: what a person typed becomes the row's request."""

from typing import Any

import dagster as dg
from pydantic import Field

from tunes_dagster.assets.attempt import Attempt
from tunes_dagster.assets.launchpad import filled_in, merged, mirror
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import DatasetOptions, Sources, TuneRequest
from tunes_dagster.core.texts import text_of
from tunes_dagster.core.validation import checked
from tunes_dagster.core.wishes import Wishes, ended
from tunes_dagster.registry import Registry, Tune
from tunes_dagster.service.installation import Installation

DatasetConfig: Any = mirror(DatasetOptions, "DatasetConfig")


class SourceImagesConfig(dg.Config):
    """The request of a tune. Empty for tunes that have a row; filled in, it starts or changes one.

    A new tune needs `name` and one source.
    """

    name: str | None = Field(default=None, description=text_of(TuneRequest, "name"))
    title: str | None = Field(default=None, description=text_of(TuneRequest, "title"))
    token: str | None = Field(default=None, description=text_of(TuneRequest, "token"))
    base: str | None = Field(default=None, description=text_of(TuneRequest, "base"))
    archive_url: str | None = Field(default=None, description=text_of(Sources, "archive_url"))
    image_urls: list[str] = Field(default_factory=list, description=text_of(Sources, "image_urls"))
    folder: str | None = Field(default=None, description=text_of(Sources, "folder"))
    captions: dict[str, str] = Field(default_factory=dict, description=text_of(TuneRequest, "captions"))
    characteristics: dict[str, str] = Field(
        default_factory=dict, description=text_of(TuneRequest, "characteristics")
    )
    account: str = Field(
        default="local", description="Whose tune a new one is; what it names is looked up there."
    )
    prompts: list[str] = Field(default_factory=list, description=text_of(TuneRequest, "prompts"))
    callback_url: str | None = Field(default=None, description=text_of(TuneRequest, "callback_url"))
    dataset: DatasetConfig = Field(default_factory=DatasetConfig, description=text_of(TuneRequest, "dataset"))


def _changes(config: SourceImagesConfig) -> dict[str, Any]:
    """Return the fields of a `TuneRequest` that were filled in."""
    changes = filled_in(config, "account", "archive_url", "image_urls", "folder", "prompts", "dataset")
    sources = {k: v for k in ("archive_url", "image_urls", "folder") if (v := getattr(config, k))}
    if sources:
        changes["sources"] = sources
    if config.prompts:
        changes["prompts"] = [{"text": text} for text in config.prompts]
    if dataset := filled_in(config.dataset):
        changes["dataset"] = dataset
    return changes


def require_tune(registry: Registry, tune_id: str) -> Tune:
    """Return the tune of a partition.

    Raises:
        Failure: `UNKNOWN_TUNE` with the way to start one.
    """
    if not registry.tunes.has(tune_id):
        raise Failure(
            FailureCode.UNKNOWN_TUNE,
            f"The registry has no tune {tune_id!r}: the partition exists, but nobody has asked for this tune.",
            "Materialize source_images of this partition with the request in the Launchpad "
            "(name and one of archive_url, image_urls, folder), or run `tunes train`.",
        )
    return registry.tunes.get(tune_id)


def tune_of_partition(
    tune_id: str, config: SourceImagesConfig, installation: Installation
) -> tuple[Tune, dict[str, Any]]:
    """Return the tune of a partition, started by what the Launchpad says if there is none, and what is to change.

    Raises:
        Failure: `UNKNOWN_TUNE` with neither row nor request, `INVALID_REQUEST` for wrong values.
    """
    changes, registry = _changes(config), installation.registry
    if registry.tunes.has(tune_id):
        return registry.tunes.get(tune_id), changes
    if not {"name", "sources"} <= set(changes):
        return require_tune(registry, tune_id), {}
    from tunes_dagster.service.submit import submit_tune

    request = checked(TuneRequest, changes, "What the Launchpad says")
    tune = submit_tune(
        installation,
        request,
        account_id=registry.accounts.get(config.account).id,
        origin="ui",
        tune_id=tune_id,
        allow_folder=request.sources.folder,
    )
    return tune, {}


def change_request(mine: Attempt, tune: Tune, changes: dict[str, Any], installation: Installation) -> Tune:
    """Write changed fields of the request into the row of a tune whose attempt this run owns.

    Raises:
        Failure: `INVALID_REQUEST` for wrong values, or another base.
    """
    from tunes_dagster.service.submit import make_recipe
    from tunes_dagster.training.checks import check_tune

    registry, catalog, settings = installation.registry, installation.catalog, installation.settings
    request = TuneRequest.model_validate(tune.request)
    if "dataset" in changes:
        changes = {**changes, "dataset": merged(request.dataset, changes["dataset"])}
    request = merged(request, changes)
    entry = catalog.real(catalog.resolve(request.base))
    if entry.base_id != tune.base_id:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"The base of tune {tune.number} is {tune.base_id}; it cannot become {entry.base_id}.",
            "Start a new tune with the other base.",
        )
    wishes = Wishes(settings.unmet_wishes)
    request = check_tune(request, catalog.resolve(request.base), entry, settings, wishes)
    for said in ended(wishes.told()):
        registry.events.add(tune.id, tune.status, said)
    recipe = make_recipe(request, entry, tune.recipe.get("continues"))
    return registry.tunes.set_recipe(mine.work.id, mine.run_id, recipe, request)
