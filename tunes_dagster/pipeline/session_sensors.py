"""The sensors of an installation with device sessions (`TUNES_SESSIONS`): what needs no device, and the runs that tell.

Whatever needs a device is taken by sessions, from the registry and without a sensor.
"""

import dagster as dg

from tunes_dagster.pipeline.device_runs import heed_cancelled_runs, requests
from tunes_dagster.pipeline.jobs import embed_faces, finish_tune, render_batch, train_tune
from tunes_dagster.pipeline.sensors import (
    EACH_TIME,
    RUNNING,
    due_callbacks,
    launched,
    new_datasets,
    queued_tunes,
    stuck_work,
)
from tunes_dagster.pipeline.telling import Teller
from tunes_dagster.resources import InstallationResource
from tunes_dagster.service import decide

# A tick has 60 s, and requesting 25 runs takes up to 7 of them.
_TELLING_SECONDS = 20.0


@dg.sensor(
    name="prepared_tunes",
    jobs=[embed_faces],
    minimum_interval_seconds=EACH_TIME,
    default_status=RUNNING,
    description="Makes prepared tunes that train nothing (faceid), which need no device; sessions train the others.",
)
def untrained_tunes(
    context: dg.SensorEvaluationContext, installation: InstallationResource
) -> dg.SensorResult:
    """Prepared tunes that train nothing → embed_faces."""
    whole = installation.open(works=False)
    return launched(context, decide.embed_launches(whole.registry, whole.settings))


@dg.sensor(
    jobs=[train_tune, finish_tune, render_batch],
    minimum_interval_seconds=EACH_TIME,
    default_status=RUNNING,
    description=(
        "Tells the runs of device work what the sessions did, and requests a run for each attempt that has none."
    ),
)
def device_runs(context: dg.SensorEvaluationContext, installation: InstallationResource) -> dg.SensorResult:
    """Attempts of sessions → runs that tell of them."""
    whole = installation.open(works=False)
    heed_cancelled_runs(context.instance, whole.registry)
    Teller(context.instance, whole).tell(_TELLING_SECONDS)
    return requests(context.instance, whole.registry.device_runs.requests_due(limit=decide.RUNS_PER_TICK))


SESSION_SENSORS = [new_datasets, queued_tunes, untrained_tunes, device_runs, due_callbacks, stuck_work]
