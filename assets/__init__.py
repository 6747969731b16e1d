"""Dagster assets and their checks: thin. Each reads its inputs, calls one library function, returns metadata.

    names.py       keys, groups, owners, the pool
    datasets.py    source_images, training_set, captions      (partition: tune)
    tunes.py       lora, report_card                           (partition: tune)
    renders.py     renders                                     (partition: render batch)
    cohort.py      what `lora` and the `train_cohort` job share: training the tunes that a run claimed
    attempt.py     how a run owns a row of the registry
    trained.py     what is shown and checked of `lora`
    evaluated.py   what is scored, shown and checked of `report_card`
    following.py   what a session does for a run that has a process
    launchpad.py   the library's options as Launchpad fields
    requests.py    tunes and prompts that start in the Launchpad
    installation.py  the drop folder and the installation as a whole, and their checks
    display.py     metadata for people
    versions.py    data versions
    dataset_pages.py, campaign_pages.py    what is shown and checked of datasets and of campaigns' dates

Modules with assets, ops or configs do not postpone annotations: Dagster reads them as types.
"""

import dagster as dg

from tunes_dagster.assets.datasets import captions, source_images, training_set
from tunes_dagster.assets.installation import (
    drop_folder,
    everything_is_usable,
    installation_itself,
    nothing_is_stranded,
)
from tunes_dagster.assets.renders import renders_asset
from tunes_dagster.assets.tunes import lora_asset, report_card_asset
from tunes_dagster.core.settings import Settings

# What no run makes, and what is looked at of it.
SURROUNDINGS = [drop_folder, installation_itself]
CHECKS = [everything_is_usable, nothing_is_stranded]

__all__ = ["CHECKS", "SURROUNDINGS", "all_assets"]


def all_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """Return the assets that runs make."""
    prepared = [source_images, training_set, captions]
    return [*prepared, lora_asset(settings), report_card_asset(settings), renders_asset(settings)]
