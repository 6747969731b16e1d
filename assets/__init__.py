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
    display.py     metadata for people

Modules with assets, ops or configs do not postpone annotations: Dagster reads them as types.
"""

from tunes_dagster.assets.datasets import captions, source_images, training_set
from tunes_dagster.assets.renders import renders
from tunes_dagster.assets.tunes import lora, report_card

ALL_ASSETS = [source_images, training_set, captions, lora, report_card, renders]

__all__ = ["ALL_ASSETS", "captions", "lora", "renders", "report_card", "source_images", "training_set"]
