"""`tunes callbacks list | show | replay`: the notifications that are owed, delivered or given up."""

from __future__ import annotations

from typing import Annotated

import typer

from tunes_dagster.cli.installation import open_installation
from tunes_dagster.cli.output import ago, emit_json, escape, say, styled, table
from tunes_dagster.core import clock

app = typer.Typer(
    no_args_is_help=True, help="Look at the notifications that callers are owed, and send them again."
)
Which = Annotated[str, typer.Argument(help="Id of the callback: cb_…")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.command("list")
def list_callbacks(
    state: Annotated[str | None, typer.Option(help="pending, delivered, dead or held. Default: all.")] = None,
    subject: Annotated[str | None, typer.Option(help="Only those of this tune or prompt (id).")] = None,
    limit: Annotated[int, typer.Option(help="At most so many, newest first.", min=1)] = 30,
    as_json: AsJson = False,
) -> None:
    """List callbacks, newest first."""
    rows = open_installation().registry.outbox.rows(state=state, subject_id=subject, limit=limit)
    if as_json:
        emit_json([{name: getattr(row, name) for name in _FIELDS} for row in rows])
        return
    if not rows:
        say("No callbacks.")
        return
    table(
        ["callback", "event", "of", "to", "state", "tries#", "next", "made"],
        [
            (
                row.id,
                row.event,
                row.subject_id,
                escape(row.url),
                styled(row.state),
                row.attempts,
                (clock.iso(row.next_attempt_at) or "")[11:19] if row.state == "pending" else "",
                ago(row.created_at),
            )
            for row in rows
        ],
    )


@app.command()
def show(callback: Which, as_json: AsJson = False) -> None:
    """Show one callback: its body, and every attempt with the receiver's answer."""
    registry = open_installation().registry
    row = registry.outbox.get(callback)
    deliveries = registry.outbox.deliveries(row.id)
    if as_json:
        tries = [{name: getattr(one, name) for name in _DELIVERY_FIELDS} for one in deliveries]
        emit_json({**{name: getattr(row, name) for name in _FIELDS}, "body": row.body, "deliveries": tries})
        return
    say(f"[bold]{row.id}[/]  {row.event} of {row.subject_id}  {styled(row.state)}")
    say(f"  to {escape(row.url)}")
    for one in deliveries:
        outcome = one.status_code or one.error or ("no answer recorded" if one.finished_at is None else "")
        say(f"  [dim]{clock.iso(one.started_at)}[/]  attempt {one.attempt}: {escape(outcome)}")
        if one.response_head:
            say(f"      [dim]{escape(one.response_head[:200])}[/]")
    say("")
    emit_json(row.body)


@app.command()
def replay(
    callback: Which,
    force: Annotated[bool, typer.Option("--force", help="Also when it was delivered.")] = False,
) -> None:
    """Send a callback again, also one that was given up. It goes out with the daemon's next tick."""
    row = open_installation().registry.outbox.replay(callback, force=force)
    say(f"{row.id} goes out again with the next tick of the daemon (`tunes dev`).")


_FIELDS = (
    "id",
    "event",
    "subject_id",
    "url",
    "state",
    "attempts",
    "next_attempt_at",
    "delivered_at",
    "created_at",
)
_DELIVERY_FIELDS = ("attempt", "started_at", "finished_at", "status_code", "error", "response_head")
