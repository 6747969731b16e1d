"""`tunes devices`: which sessions hold devices, what they have loaded, whom they serve, and what waits."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tunes_dagster.cli.installation import open_installation
from tunes_dagster.cli.output import emit_json, escape, say, table


def devices(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show who holds which device, with what loaded and whom it serves; ids only."""
    installation = open_installation()
    rows, patience = installation.registry, installation.settings.lost_after_seconds
    sessions: list[dict[str, Any]] = []
    for one in rows.sessions.alive(patience):
        works = rows.sessions.works_of(one.id)
        sessions.append(
            {
                "session": one.id,
                "host": one.host,
                "device": one.device or None,
                "memory_gb": round(one.memory_gb, 1),
                "token": one.token,
                "bases": list(one.bases),
                "computes": [work.subject_id for work in works if work.id in one.doing],
                "holds": [work.subject_id for work in works if work.id not in one.doing],
                "began_at": one.began_at.isoformat(),
            }
        )
    lengths = rows.figures.queue_lengths()
    waiting = {str(one["kind"]): one["count"] for one in lengths["work"] if one["state"] == "queued"}
    if lengths["prompts_queued"]:
        waiting["prompts"] = lengths["prompts_queued"]
    if as_json:
        emit_json({"sessions": sessions, "waiting": waiting})
        return
    holders = [one for one in sessions if one["device"]]
    if not holders:
        keeper = any(not one["device"] for one in sessions)
        say("No session holds a device" + ("; one is started when something waits." if keeper else "."))
    else:
        table(
            ["session", "host", "device", "loaded", "computes", "holds"],
            [
                tuple(
                    escape(cell)
                    for cell in (
                        one["session"],
                        one["host"],
                        f"{one['device']} ({one['memory_gb']:g} GiB)",
                        ", ".join(one["bases"]) or "nothing",
                        ", ".join(one["computes"]) or "nothing",
                        ", ".join(one["holds"]),
                    )
                )
                for one in holders
            ],
        )
    if waiting:
        say("Waiting: " + ", ".join(f"{number} {escape(kind)}" for kind, number in waiting.items()) + ".")
