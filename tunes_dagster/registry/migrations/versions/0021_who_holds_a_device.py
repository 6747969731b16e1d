"""Which session holds a device, what it has loaded and what it computes."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0021"
down_revision = "0020"
_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_COLUMNS = (
    sa.Column("token", sa.Integer(), nullable=False, server_default="0"),
    sa.Column("memory_gb", sa.Float(), nullable=False, server_default="0"),
    sa.Column("bases", _JSON, nullable=False, server_default="[]"),
    sa.Column("doing", _JSON, nullable=False, server_default="[]"),
)


def upgrade() -> None:
    """Apply."""
    for column in _COLUMNS:
        op.add_column("device_sessions", column.copy())


def downgrade() -> None:
    """Take back."""
    for column in _COLUMNS:
        op.drop_column("device_sessions", column.name)
