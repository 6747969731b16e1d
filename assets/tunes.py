"""The tune itself: `lora`, partitioned by tune, on the GPU."""

import dagster as dg

from assets.attempt import attempt, sentences
from assets.cohort import Trainee, all_closed, conclude, train_trainees, trainee_of
from assets.launchpad import filled_in, mirror
from assets.names import CAPTIONS, GPU_POOL, LORA, TRAINING_SET, Group, Owner
from assets.requests import require_tune
from assets.trained import LORA_CHECKS, Trained
from resources import CatalogResource, ComputeResource, RegistryResource, StoreResource
from tunes_dagster.partitions import tunes
from tunes_dagster.recipe import TrainingOptions

LORA_CONFIG = mirror(TrainingOptions, "LoraConfig")
"""Empty trains by the tune's recipe; what is filled in overrides it and is written into it."""


@dg.asset(
    key=LORA,
    deps=[TRAINING_SET, CAPTIONS],
    partitions_def=tunes,
    pool=GPU_POOL,
    group_name=Group.TUNE,
    kinds={"pytorch", "diffusers", "safetensors"},
    owners=[Owner.TRAINING],
    check_specs=LORA_CHECKS,
    description=(
        "The LoRA weights of a tune, in diffusers and kohya layout. The sensors train them many at a time "
        "(`train_cohort`); materializing here trains this one, and the Launchpad's values override its recipe."
    ),
)
def lora(
    context: dg.AssetExecutionContext,
    config: LORA_CONFIG,  # type: ignore[valid-type]
    registry: RegistryResource,
    store: StoreResource,
    catalog: CatalogResource,
    compute: ComputeResource,
) -> dg.MaterializeResult:
    """Train a cohort of one."""
    rows, kept = registry.open(), store.open()
    with sentences():
        tune = require_tune(rows, context.partition_key)
    done: list[Trained] = []

    def on_trained(trainee: Trainee, trained: Trained) -> None:
        # A ready tune is packaged again, so that what is published follows the new weights.
        trainee.mine.finish(trained.row_result(), continue_=True)
        done.append(trained)

    with attempt(context, rows, "train", tune.id, closes=False) as mine:
        trainees = [trainee_of(mine, rows, catalog, filled_in(config))]
        with all_closed(context, trainees):
            train_trainees(context, trainees, kept, catalog, compute, on_trained)
    conclude(context, trainees)
    (trained,) = done
    return dg.MaterializeResult(metadata=trained.metadata, check_results=trained.checks)
