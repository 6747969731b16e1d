"""What a sensor's tick works with, at the price of a tick that finds nothing.

Dagster builds the resources that a sensor declares for every tick, and for that opens its own storage: five sixths of
what a tick costs that finds nothing (py-spy; an installation at rest makes more than one a second). So the sensors
declare none. They ask here, where resources and instance are made of the same definitions at the first tick, and kept
for as long as the process that Dagster loaded them in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import dagster as dg

from tunes_dagster.service.installation import Installation

# Resources by name, and the instance, of each set of definitions that is loaded.
_kept: WeakKeyDictionary[dg.RepositoryDefinition, dict[str, Any]] = WeakKeyDictionary()


def _once(context: dg.SensorEvaluationContext, name: str, make: Callable[[], Any]) -> Any:
    """Return what was made by an earlier tick in this process; `make` is what a tick without one does."""
    definitions = context.repository_def
    if definitions is None:  # called by hand
        return make()
    mine = _kept.setdefault(definitions, {})
    if name not in mine:
        mine[name] = make()
    return mine[name]


def resource_of(context: dg.SensorEvaluationContext, name: str) -> Any:
    """Return a resource of the definitions that a sensor belongs to."""
    definitions = context.repository_def
    if definitions is None:
        return getattr(context.resources, name)

    def made() -> Any:
        # Left open: it ends with the process.
        return dg.build_resources(definitions.get_top_level_resources()).__enter__()

    return getattr(_once(context, "resources", made), name)


def instance_of(context: dg.SensorEvaluationContext) -> dg.DagsterInstance:
    """Return Dagster's instance; a tick's own is closed with it."""
    reference = context.instance_ref
    if reference is None:
        return context.instance
    instance: dg.DagsterInstance = _once(context, "instance", lambda: dg.DagsterInstance.from_ref(reference))
    return instance


def installation_of(context: dg.SensorEvaluationContext) -> Installation:
    """Return the installation, which does not wait for a database that is away: the next tick comes soon."""
    installation: Installation = resource_of(context, "installation").open(works=False)
    return installation
