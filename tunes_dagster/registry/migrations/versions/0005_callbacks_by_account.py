"""Callbacks that are due, by account: senders let accounts take turns."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Apply."""
    op.create_index("ix_callbacks_turns", "callbacks", ["state", "account_id", "next_attempt_at"])


def downgrade() -> None:
    """Revert."""
    op.drop_index("ix_callbacks_turns", "callbacks")
