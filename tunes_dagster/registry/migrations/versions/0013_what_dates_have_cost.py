"""What a date of a campaign has cost in its earlier plans."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("campaign_dates", schema=None) as batch_op:
        batch_op.add_column(sa.Column("spent", sa.BigInteger(), server_default="0", nullable=False))
    with op.batch_alter_table("campaign_prompts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("price", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("campaign_prompts", schema=None) as batch_op:
        batch_op.drop_column("price")
    with op.batch_alter_table("campaign_dates", schema=None) as batch_op:
        batch_op.drop_column("spent")
