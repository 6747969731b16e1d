"""Rows as people and programs see them: dicts for `--json`, lines and tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunes_dagster.cli.output import ago, escape, say, styled, table
from tunes_dagster.core import clock
from tunes_dagster.core.progress import format_seconds
from tunes_dagster.core.wishes import together


def tune_as_dict(tune: Any) -> dict[str, Any]:
    """Return what `--json` says about a tune."""
    failure = None
    if tune.failure_code:
        failure = _failure(tune)
    return {
        "id": tune.id,
        "number": tune.number,
        "account": tune.account_id,
        "title": tune.title,
        "name": tune.class_name,
        "token": tune.token,
        "base": tune.base,
        "branch": tune.base_id,
        "status": tune.status,
        "phase": tune.phase,
        "message": tune.message,
        "progress": round(tune.progress, 1),
        "step": tune.step,
        "total_steps": tune.total_steps,
        "seconds_left": tune.seconds_left,
        "failure": failure,
        "warnings": tune.warnings,
        "findings": tune.findings,
        "verdict": tune.verdict,
        "result": tune.result,
        "recipe_hash": tune.recipe_hash,
        "origin": tune.origin,
        "labels": tune.labels,
        "created_at": clock.iso(tune.created_at),
        "started_at": clock.iso(tune.started_at),
        "ready_at": clock.iso(tune.ready_at),
        "updated_at": clock.iso(tune.updated_at),
    }


def _failure(row: Any) -> dict[str, str | None]:
    return {
        "code": row.failure_code,
        "message": row.failure_message,
        "remedy": row.failure_remedy,
        "detail": row.failure_detail,
    }


def prompt_as_dict(prompt: Any, progress: float, waiting: str | None = None) -> dict[str, Any]:
    """Return what `--json` says about a prompt.

    Args:
        prompt: Its row.
        progress: How far it is (`groups.progress_of`).
        waiting: Why it is not begun (`service.waiting`).
    """
    failure = None
    if prompt.failure_code:
        failure = _failure(prompt)
    return {
        "id": prompt.id,
        "number": prompt.number,
        "account": prompt.account_id,
        "text": prompt.text,
        "tune": prompt.tune_id,
        "base": prompt.base,
        "branch": prompt.base_id,
        "settings": prompt.settings,
        "status": prompt.status,
        "progress": progress,
        "images": prompt.images,
        "waiting": waiting,
        "failure": failure,
        "warnings": prompt.warnings,
        "findings": prompt.findings,
        "origin": prompt.origin,
        "created_at": clock.iso(prompt.created_at),
        "done_at": clock.iso(prompt.done_at),
    }


def say_warnings(rows: list[Any]) -> None:
    """Print what was wished for and is not met, each once."""
    for sentence in together(said for row in rows for said in row.warnings or []):
        say(f"[yellow]{escape(sentence)}.[/]")


def say_findings(rows: list[Any]) -> None:
    """Print what work found out about tunes and prompts, each once, and what report cards say of ready tunes."""
    for row in rows:
        if verdict := getattr(row, "verdict", None):
            say(f"Report card: {_coloured(verdict)}")
            for reason in verdict["reasons"]:
                say(f"  [yellow]{escape(reason)}[/]")
    for sentence in together(said for row in rows for said in row.findings):
        say(f"[yellow]{escape(sentence)}[/]")


def _coloured(verdict: dict[str, Any]) -> str:
    colour = {"good": "green", "bad": "red"}.get(verdict["verdict"], "yellow")
    return f"[{colour}]{escape(verdict['line'])}[/]"


def progress_of(tune: Any) -> str:
    """Return how far a tune is in a few words: `37 %, training 120/400, 40 s left`; of a ready one its verdict."""
    if tune.status == "ready" and tune.verdict:
        return f"report card: {tune.verdict['verdict']}"
    if tune.status in ("ready", "cancelled", "deleted"):
        return ""
    if tune.status == "failed":
        return tune.failure_message or ""
    words = f"{tune.progress:.0f} %, {tune.phase}" if tune.phase and tune.progress else tune.phase or ""
    if tune.total_steps and tune.step:
        words += f" {tune.step}/{tune.total_steps}"
    if tune.seconds_left is not None:
        words += f", {format_seconds(tune.seconds_left)} left"
    return words or tune.message or ""


def say_tunes(tunes: list[Any]) -> None:
    """Print tunes as a table."""
    several = len({tune.account_id for tune in tunes}) > 1
    rows = [
        (
            tune.number,
            *([escape(tune.account_id)] if several else []),
            escape(tune.title),
            escape(f"{tune.token} {tune.class_name}"),
            tune.base if tune.base == tune.base_id else f"{tune.base} ({tune.base_id})",
            styled(tune.status),
            escape(progress_of(tune)),
            ago(tune.created_at),
        )
        for tune in tunes
    ]
    whose = ["account"] if several else []
    table(["tune#", *whose, "title", "subject", "base", "status", "", "made"], rows)


def say_prompts(
    prompts: list[Any], progress: Mapping[str, float], waiting: Mapping[str, str] | None = None
) -> None:
    """Print prompts as a table: of those at work how far they are, of those not begun why (`service.waiting`)."""

    def said(prompt: Any) -> str:
        if prompt.status == "rendering":
            return f"{progress[prompt.id]:.0f} %"
        return prompt.failure_message or (waiting or {}).get(prompt.id, "")

    rows = [
        (
            prompt.number,
            escape(prompt.text),
            prompt.settings.get("seed", ""),
            len(prompt.images or []) or prompt.settings.get("num_images", 1),
            styled(prompt.status),
            escape(said(prompt)),
            ago(prompt.created_at),
        )
        for prompt in prompts
    ]
    table(["prompt#", "text", "seed#", "images#", "status", "", "made"], rows)


def say_unused(drops: list[Any]) -> None:
    """Print what lies in the drop folder and cannot be used, until it is corrected or taken away."""
    for drop in drops:
        say(f"[yellow]Drop folder: {escape(drop.path)} is not used:[/] {escape(drop.message)}")


def say_tune(
    tune: Any,
    events: list[Any],
    prompts: list[Any],
    progress: Mapping[str, float],
    waiting: Mapping[str, str] | None = None,
) -> None:
    """Print everything about one tune: where it stands, its timeline, its files, its prompts."""
    say(f"[bold]Tune {tune.number}: {escape(tune.title)}[/]  {styled(tune.status)}  [dim]{tune.id}[/]")
    stands_in = "" if tune.base == tune.base_id else f", which means {tune.base_id} here"
    say(
        f"  {escape(f'{tune.token} {tune.class_name}')} on {tune.base}{stands_in}; recipe {tune.recipe_hash[:12]}"
    )
    words = progress_of(tune)
    if words and tune.status not in ("failed", "ready"):
        say(f"  {escape(words)}")
    if tune.failure_code:
        say(f"  [red]{escape(tune.failure_message or '')}[/] {escape(tune.failure_remedy or '')}")
    if tune.failure_detail:
        say(f"  [dim]{escape(tune.failure_detail)}[/]")
    say_warnings([tune, *prompts])
    say_findings([tune, *prompts])
    if events:
        say("\n[bold]Timeline[/]")
        for event in events[-30:]:
            moment = event.at.astimezone().strftime("%H:%M:%S")
            say(f"  [dim]{moment}[/]  {event.phase:<11} {escape(event.message)}")
    files = files_of(tune)
    if files:
        say("\n[bold]Files in the store[/]")
        for what, key in files:
            say(f"  {what:<22} {escape(key)}")
    if prompts:
        say("\n[bold]Prompts[/]")
        say_prompts(prompts, progress, waiting)


_WEIGHTS = {"checkpoint": "model (diffusers)", "faceid": "face embeddings"}


def files_of(tune: Any) -> list[tuple[str, str]]:
    """Return what a finished tune left in the store, as (what, key)."""
    made = tune.made
    card = made.report_card
    files = [
        (_WEIGHTS.get(tune.kind, "LoRA (diffusers)"), made.weights_key),
        ("LoRA (kohya)", made.kohya_key),
        ("samples over training", made.samples_key),
        ("model card", made.card_key),
        ("report card", card.page_key if card else None),
    ]
    return [(what, key) for what, key in files if key]
