"""The code location: every asset, check, job, sensor, schedule and resource, put together once.

Loads without torch, diffusers or transformers (a test holds it to that): the web server, the daemon and every
run worker import this file.
"""

from __future__ import annotations

from typing import Any

import dagster as dg

from assets import ALL_ASSETS
from resources import default_resources
from tunes_dagster.jobs import ALL_JOBS
from tunes_dagster.schedules import ALL_SCHEDULES
from tunes_dagster.sensors import ALL_SENSORS


def build_defs(*, resource_overrides: dict[str, Any] | None = None) -> dg.Definitions:
    """Assemble the definitions.

    Args:
        resource_overrides: Resources by key that replace the default ones, for tests and other deployments.
    """
    return dg.Definitions(
        assets=ALL_ASSETS,
        jobs=ALL_JOBS,
        sensors=ALL_SENSORS,
        schedules=ALL_SCHEDULES,
        resources={**default_resources(), **(resource_overrides or {})},
        # One process per run: a process per step costs seconds and would load the model again.
        executor=dg.in_process_executor,
    )


defs = build_defs()
