"""The tune itself, partitioned by tune: `lora` trains it, `report_card` scores it and makes it ready."""

from functools import partial

import dagster as dg

from tunes_dagster.assets.attempt import attempt, sentences
from tunes_dagster.assets.cohort import all_closed, conclude, place_of
from tunes_dagster.assets.evaluated import ABOVE_BASE, described
from tunes_dagster.assets.following import followed
from tunes_dagster.assets.launchpad import filled_in, merged, mirror
from tunes_dagster.assets.names import (
    CAPTIONS,
    CODE_VERSIONS,
    GPU_POOL,
    LORA,
    REPORT_CARD,
    REPORT_POOL,
    TRAINING_SET,
    Group,
    Owner,
    pool_of,
)
from tunes_dagster.assets.requests import require_tune
from tunes_dagster.assets.trained import LORA_CHECKS
from tunes_dagster.assets.trained import described as trained_as_shown
from tunes_dagster.core.progress import Phase
from tunes_dagster.core.recipe import TrainingOptions
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.work import WorkKind
from tunes_dagster.evaluation.card import CardOptions
from tunes_dagster.pipeline.partitions import tunes
from tunes_dagster.resources import (
    ComputeResource,
    InstallationResource,
    ScorersResource,
)
from tunes_dagster.sessions.cohorts import Trainee, train_trainees, trainee_of
from tunes_dagster.sessions.packaging import package
from tunes_dagster.sessions.results import Trained
from tunes_dagster.sessions.scoring import evaluate

LORA_CONFIG = mirror(TrainingOptions, "LoraConfig")
"""Empty trains by the tune's recipe; what is filled in overrides it and is written into it."""

CARD_CONFIG = mirror(CardOptions, "ReportCardConfig")
"""Empty looks at as much as the settings say; what is filled in overrides them."""


def lora(
    context: dg.AssetExecutionContext,
    config: LORA_CONFIG,  # type: ignore[valid-type]
    installation: InstallationResource,
    compute: ComputeResource,
) -> dg.MaterializeResult:
    """Train a cohort of one."""
    whole = installation.open()
    rows = whole.registry
    with sentences():
        tune = require_tune(rows, context.partition_key)
    if (made := followed(context, whole, WorkKind.TRAIN, tune.id, filled_in(config))) is not None:
        return made
    done: list[dg.MaterializeResult[None]] = []

    def on_trained(trainee: Trainee, trained: Trained) -> None:
        shown = trained_as_shown(trained, whole.store)
        # A ready tune is packaged again, so that what is published follows the new weights.
        trainee.mine.finish(trained.row_result(), continue_=True)
        done.append(shown)

    with attempt(context, whole, WorkKind.TRAIN, tune.id, closes=False) as mine:
        trainees = [trainee_of(mine, whole, filled_in(config))]
        with all_closed(context, trainees):
            train_trainees(place_of(context, whole, compute), trainees, on_trained)
    conclude(context, trainees)
    (shown,) = done
    return shown


def lora_asset(settings: Settings) -> dg.AssetsDefinition:
    """Return the asset, which waits for a pool where no sessions hold the devices."""
    made = dg.asset(
        key=LORA,
        code_version=CODE_VERSIONS[LORA],
        deps=[TRAINING_SET, CAPTIONS],
        partitions_def=tunes,
        pool=pool_of(GPU_POOL, settings),
        group_name=Group.TUNE,
        kinds={"pytorch", "diffusers", "safetensors"},
        owners=[Owner.TRAINING],
        check_specs=LORA_CHECKS,
        description=(
            "The weights of a tune: an adapter in diffusers and kohya layout, or a whole model as a diffusers "
            "pipeline. The sensors train adapters many at a time "
            "(`train_cohort`); materializing here trains this one, and the Launchpad's values override its recipe."
        ),
    )
    return made(lora)


def report_card(
    context: dg.AssetExecutionContext,
    config: CARD_CONFIG,  # type: ignore[valid-type]
    installation: InstallationResource,
    compute: ComputeResource,
    scorers: ScorersResource,
) -> dg.MaterializeResult:
    """Score, choose, publish."""
    whole = installation.open()
    rows = whole.registry
    with sentences():
        tune = require_tune(rows, context.partition_key)
        options = merged(scorers.options(whole.settings), filled_in(config))
    if (made := followed(context, whole, WorkKind.FINISH, tune.id, filled_in(config))) is not None:
        return made
    with attempt(context, whole, WorkKind.FINISH, tune.id) as mine:
        open_scorers = partial(scorers.open, whole.settings)
        done = evaluate(mine, tune, options, place_of(context, whole, compute), open_scorers)
        mine.report.phase(Phase.PACKAGING)
        mine.finish(package(tune, done.result, whole.store, mine.report))
    return described(done, tune, whole.store)


def report_card_asset(settings: Settings) -> dg.AssetsDefinition:
    """Return the asset, which waits for a pool where no sessions hold the devices."""
    made = dg.asset(
        key=REPORT_CARD,
        code_version=CODE_VERSIONS[REPORT_CARD],
        deps=[LORA, TRAINING_SET],
        partitions_def=tunes,
        pool=pool_of(REPORT_POOL, settings),
        group_name=Group.TUNE,
        kinds={"pytorch", "diffusers", "html"},
        owners=[Owner.TRAINING],
        check_specs=[ABOVE_BASE],
        description=(
            "The measured quality of a tune over its checkpoints: likeness, obedience to prompts, variety, copying. "
            "Publishes the chosen checkpoint and makes the tune ready; scoring that fails or takes too long publishes "
            "the last checkpoint and says so."
        ),
    )
    return made(report_card)
