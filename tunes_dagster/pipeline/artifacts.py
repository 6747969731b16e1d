"""Dagster's folder of artifacts, the part of an instance that every process opens at its start, in its main thread.

The run launcher asks the registry from threads of the daemon and of the web server. SQLAlchemy's ORM, when a thread
imports it while others use the core, breaks a query of theirs; so it is imported here, before there are any threads.
"""

from __future__ import annotations

from tunes_dagster.core.settings import get_settings
from tunes_dagster.pipeline.dagster_private import LocalArtifactStorage


class ArtifactFolder(LocalArtifactStorage):
    """Dagster's own, with what its threads will need."""


if get_settings().uses_sessions:
    import tunes_dagster.registry  # noqa: F401 - see above
