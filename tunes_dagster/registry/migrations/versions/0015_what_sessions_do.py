"""What sessions do, and the Dagster runs that tell of it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015"
down_revision = "0014"
_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "device_runs",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("work_id", sa.String(length=80), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("subject_id", sa.String(length=80), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=True),
        sa.Column("run_id", sa.String(length=80), nullable=True),
        sa.Column("leader_id", sa.String(length=80), nullable=True),
        sa.Column("changes", _JSON, nullable=False),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("failure_code", sa.Text(), nullable=True),
        sa.Column("again", sa.Boolean(), nullable=False),
        sa.Column("facts", _JSON, nullable=False),
        sa.Column("told", sa.String(length=10), nullable=False),
        sa.Column("said", sa.Integer(), nullable=False),
        sa.Column("teller", sa.Text(), nullable=True),
        sa.Column("telling_until", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_device_runs_work", "device_runs", ["work_id", "attempt"])
    op.create_index("ix_device_runs_run", "device_runs", ["run_id"])
    op.create_index("ix_device_runs_told", "device_runs", ["told", "id"])
    op.create_index("ix_device_runs_subject", "device_runs", ["subject_id"])
    op.create_index("ix_device_runs_requested", "device_runs", ["kind", "requested_at"])
    op.create_table(
        "device_run_lines",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("device_run_id", sa.String(length=80), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_device_run_lines_run", "device_run_lines", ["device_run_id", "id"])


def downgrade() -> None:
    """Take back."""
    op.drop_table("device_run_lines")
    op.drop_table("device_runs")
