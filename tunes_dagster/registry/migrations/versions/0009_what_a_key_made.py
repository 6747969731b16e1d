"""What a request with an idempotency key made, and what repeats of a prompt are known by."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("idempotency_keys") as table:
        table.add_column(sa.Column("claim", sa.String(40), nullable=False, server_default=""))
        table.add_column(sa.Column("subjects", JSON, nullable=True))
    with op.batch_alter_table("api_objects") as table:
        table.add_column(sa.Column("sameness", sa.String(64), nullable=True))
        table.create_index("ix_api_objects_sameness", ["account_id", "sameness"])


def downgrade() -> None:
    """Revert."""
    with op.batch_alter_table("api_objects") as table:
        table.drop_index("ix_api_objects_sameness")
        table.drop_column("sameness")
    with op.batch_alter_table("idempotency_keys") as table:
        table.drop_column("subjects")
        table.drop_column("claim")
