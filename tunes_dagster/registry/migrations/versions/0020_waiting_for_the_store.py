"""How long work has been put off because the store was away."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    """Apply."""
    op.add_column("work", sa.Column("waited", sa.Float(), nullable=False, server_default="0"))


def downgrade() -> None:
    """Take back."""
    op.drop_column("work", "waited")
