"""When a cohort ended is not kept: nobody read it, and it is under way while a member is open."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    """Apply."""
    op.drop_column("cohorts", "done_at")


def downgrade() -> None:
    """Take back."""
    op.add_column("cohorts", sa.Column("done_at", sa.DateTime(timezone=True), nullable=True))
