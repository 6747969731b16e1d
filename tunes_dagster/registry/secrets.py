"""What only this installation knows, whichever host or process asks."""

from __future__ import annotations

import secrets as random
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.retrying import repeatable
from tunes_dagster.registry.tables import Secret


class Secrets(Part):
    """Made when first asked for."""

    @repeatable
    def get(self, name: str) -> bytes:
        """Return the secret of a name."""
        query = select(Secret.value).where(Secret.name == name)
        with self.reading() as session:
            if (kept := session.scalar(query)) is not None:
                return kept.encode()
        kinds: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
        insert = kinds[self.database.engine.dialect.name]
        with self.writing() as session:
            row = {"name": name, "value": random.token_hex(32)}
            session.execute(insert(Secret).values(row).on_conflict_do_nothing())
            return str(session.scalars(query).one()).encode()
