"""How far tunes and batches are, in percent, and what of them was computed."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Apply."""
    for name in ("tunes", "batches"):
        with op.batch_alter_table(name) as table:
            table.add_column(sa.Column("progress", sa.Float(), nullable=False, server_default="0"))
            table.add_column(sa.Column("computed", sa.Float(), nullable=False, server_default="0"))
    op.execute("UPDATE tunes SET progress = 100, computed = 1 WHERE status = 'ready'")
    op.execute("UPDATE tunes SET computed = 1 WHERE status IN ('trained', 'finishing')")
    op.execute("UPDATE batches SET progress = 100, computed = 1 WHERE status = 'done'")


def downgrade() -> None:
    """Revert."""
    for name in ("batches", "tunes"):
        with op.batch_alter_table(name) as table:
            table.drop_column("computed")
            table.drop_column("progress")
