"""Alembic's entry point; the connection and its transaction come from `registry.migrate`."""

from typing import Any, Literal

from alembic import context

import tunes_dagster.registry.api_tables  # noqa: F401 - its tables are part of the schema
import tunes_dagster.registry.campaign_tables  # noqa: F401 - so are these
import tunes_dagster.registry.deletion_tables  # noqa: F401 - and these
import tunes_dagster.registry.session_tables  # noqa: F401 - and these
import tunes_dagster.registry.uses  # noqa: F401 - and this one
from tunes_dagster.registry.tables import Table, UtcDateTime


def _plain_types(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Write our own column type into revisions as what the database sees: revisions outlive the code."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    render_as_batch=True,
    compare_type=True,
    render_item=_plain_types,
)
context.run_migrations()
