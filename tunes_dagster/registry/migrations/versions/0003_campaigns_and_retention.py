"""Campaigns and their dates; rules of expiry and records of what was deleted."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "campaigns",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("account_id", sa.String(length=80), nullable=False),
        sa.Column("cron", sa.Text(), nullable=False),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("starts", sa.String(length=10), nullable=False),
        sa.Column("file", sa.Text(), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("definition", JSON, nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("problems", JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["account_id"],
            ["accounts.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name", name="uq_campaigns_name"),
    )
    op.create_table(
        "deletions",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("account_id", sa.String(length=80), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("subject_id", sa.String(length=80), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("reason", sa.String(length=20), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("what", JSON, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"],
            ["accounts.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("deletions", schema=None) as batch_op:
        batch_op.create_index("ix_deletions_account", ["account_id", "at"], unique=False)
        batch_op.create_index("ix_deletions_subject", ["subject_id"], unique=False)

    op.create_table(
        "campaign_dates",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("campaign_id", sa.String(length=80), nullable=False),
        sa.Column("date", sa.String(length=40), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("plan", JSON, nullable=False),
        sa.Column("plan_key", sa.Text(), nullable=True),
        sa.Column("report_key", sa.Text(), nullable=True),
        sa.Column("result", JSON, nullable=False),
        sa.Column("report_attempt", sa.Integer(), nullable=False),
        sa.Column("report_asked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("planned_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reported_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["campaign_id"],
            ["campaigns.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("campaign_id", "date", name="uq_campaign_dates"),
    )
    with op.batch_alter_table("campaign_dates", schema=None) as batch_op:
        batch_op.create_index("ix_campaign_dates_status", ["status"], unique=False)

    op.create_table(
        "campaign_prompts",
        sa.Column("date_id", sa.String(length=80), nullable=False),
        sa.Column("item", sa.Integer(), nullable=False),
        sa.Column("campaign_id", sa.String(length=80), nullable=False),
        sa.Column("prompt_id", sa.String(length=80), nullable=False),
        sa.Column("line", sa.Integer(), nullable=False),
        sa.Column("recipe_hash", sa.String(length=64), nullable=False),
        sa.Column("variables", JSON, nullable=False),
        sa.Column("kept", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["campaign_id"],
            ["campaigns.id"],
        ),
        sa.ForeignKeyConstraint(
            ["date_id"],
            ["campaign_dates.id"],
        ),
        sa.ForeignKeyConstraint(
            ["prompt_id"],
            ["prompts.id"],
        ),
        sa.PrimaryKeyConstraint("date_id", "item"),
    )
    with op.batch_alter_table("campaign_prompts", schema=None) as batch_op:
        batch_op.create_index("ix_campaign_prompts_prompt", ["prompt_id"], unique=False)
        batch_op.create_index("ix_campaign_prompts_recipe", ["campaign_id", "recipe_hash"], unique=False)

    with op.batch_alter_table("accounts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("keep_tunes_hours", sa.Float(), nullable=True))
        batch_op.add_column(sa.Column("keep_outputs_hours", sa.Float(), nullable=True))
        batch_op.add_column(sa.Column("auto_extend", sa.Boolean(), server_default=sa.false(), nullable=False))
        batch_op.add_column(sa.Column("warn_hours", sa.Float(), server_default="24", nullable=False))
        batch_op.add_column(sa.Column("expiry_callback_url", sa.Text(), nullable=True))

    with op.batch_alter_table("prompts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("kept_until", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("warned_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("expired_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.create_index("ix_prompts_expiry", ["account_id", "expired_at", "done_at"], unique=False)

    with op.batch_alter_table("tunes", schema=None) as batch_op:
        batch_op.add_column(sa.Column("auto_extend", sa.Boolean(), nullable=True))
        batch_op.add_column(sa.Column("kept_until", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("warned_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.create_index("ix_tunes_ready", ["account_id", "ready_at"], unique=False)


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("tunes", schema=None) as batch_op:
        batch_op.drop_index("ix_tunes_ready")
        batch_op.drop_column("warned_at")
        batch_op.drop_column("kept_until")
        batch_op.drop_column("auto_extend")

    with op.batch_alter_table("prompts", schema=None) as batch_op:
        batch_op.drop_index("ix_prompts_expiry")
        batch_op.drop_column("expired_at")
        batch_op.drop_column("warned_at")
        batch_op.drop_column("kept_until")

    with op.batch_alter_table("accounts", schema=None) as batch_op:
        batch_op.drop_column("expiry_callback_url")
        batch_op.drop_column("warn_hours")
        batch_op.drop_column("auto_extend")
        batch_op.drop_column("keep_outputs_hours")
        batch_op.drop_column("keep_tunes_hours")

    with op.batch_alter_table("campaign_prompts", schema=None) as batch_op:
        batch_op.drop_index("ix_campaign_prompts_recipe")
        batch_op.drop_index("ix_campaign_prompts_prompt")

    op.drop_table("campaign_prompts")
    with op.batch_alter_table("campaign_dates", schema=None) as batch_op:
        batch_op.drop_index("ix_campaign_dates_status")

    op.drop_table("campaign_dates")
    with op.batch_alter_table("deletions", schema=None) as batch_op:
        batch_op.drop_index("ix_deletions_subject")
        batch_op.drop_index("ix_deletions_account")

    op.drop_table("deletions")
    op.drop_table("campaigns")
