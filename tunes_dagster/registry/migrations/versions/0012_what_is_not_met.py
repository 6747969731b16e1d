"""What of a tune or prompt was wished for and is not met."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    """Apply."""
    for name in ("tunes", "prompts"):
        with op.batch_alter_table(name) as table:
            table.add_column(sa.Column("warnings", _JSON, nullable=False, server_default="[]"))


def downgrade() -> None:
    """Take back."""
    for name in ("tunes", "prompts"):
        with op.batch_alter_table(name) as table:
            table.drop_column("warnings")
