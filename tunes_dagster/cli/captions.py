"""`tunes captions show | edit | set`: the texts that go with the training pictures."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from tunes_dagster.cli.flags import Account, Which, called
from tunes_dagster.cli.installation import Installation, open_installation
from tunes_dagster.cli.output import emit_json, escape, say, table
from tunes_dagster.core.failures import Failure, FailureCode

app = typer.Typer(
    no_args_is_help=True, help="Look at and change the texts that go with the training pictures."
)


@app.command()
def show(
    tune: Which,
    account: Account = "local",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show the captions, and where each comes from."""
    installation = open_installation()
    row, captions = _load(installation, account, tune)
    if as_json:
        emit_json(
            [
                {"hash": c.hash, "name": c.name, "caption": c.caption, "source": c.source}
                for c in captions.rows
            ]
        )
        return
    table(
        ["picture", "caption", "from"],
        [(escape(c.name), escape(c.caption), c.source) for c in captions.rows],
    )
    say(f"[dim]{escape(installation.store.url(_key(row.id)))}[/]")


@app.command("set")
def set_caption(
    tune: Which,
    picture: Annotated[str, typer.Argument(help="File name of the picture, or the start of its hash.")],
    caption: Annotated[str, typer.Argument(help="The text; token and class are added when it lacks them.")],
    account: Account = "local",
) -> None:
    """Change one caption."""
    from tunes_dagster.intake.captions import edit_caption

    installation = open_installation()
    row, before = _load(installation, account, tune)
    after = edit_caption(row.id, picture, caption, installation.store)
    _say_next(row, before, after)


@app.command()
def edit(tune: Which, account: Account = "local") -> None:
    """Open the table in your editor ($VISUAL, $EDITOR) and keep what you change."""
    from tunes_dagster.intake.captions import set_captions

    installation = open_installation()
    row, before = _load(installation, account, tune)
    old = before.texts()
    edited = {
        key: text
        for key, text in _edited(installation, row, before.names()).items()
        if key in old and old[key] != text
    }
    after = set_captions(row.id, edited, installation.store) if edited else before
    _say_next(row, before, after)


def _edited(installation: Installation, tune: Any, names: dict[str, str]) -> dict[str, str]:
    """Let a person edit the CSV; return hash → caption as it stands afterwards."""
    from tunes_dagster.intake.edits import read_csv

    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "nano"
    with tempfile.TemporaryDirectory(prefix="tunes-captions-") as folder:
        file = Path(folder) / "captions.csv"
        file.write_bytes(installation.store.read_bytes(_key(tune.id)))
        try:
            subprocess.run([*shlex.split(editor), str(file)], check=True)  # noqa: S603 - the person's own editor
        except (OSError, subprocess.CalledProcessError) as error:
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"The editor {editor!r} did not run: {error}.",
                "Set EDITOR, or change one caption with: tunes captions set",
            ) from error
        return read_csv(file.read_bytes(), names)


def _key(tune_id: str) -> str:
    return f"tunes/{tune_id}/captions/captions.csv"


def _load(installation: Installation, account: str, tune: str) -> tuple[Any, Any]:
    from tunes_dagster.intake.captions import CaptionTable

    row = installation.registry.objects.tune_named(account, tune)
    if not installation.store.exists(_key(row.id)):
        raise Failure(
            FailureCode.CONFLICT,
            f"Tune {row.number} has no captions yet; it is {row.status}.",
            f"They are written while its pictures are prepared: tunes status {called(row)} --watch",
        )
    return row, CaptionTable.load(installation.store, row.id)


def _say_next(tune: Any, before: Any, after: Any) -> None:
    from tunes_dagster.intake.captions import changed_items

    changed = len(changed_items(before, after))
    if not changed:
        say("Nothing changed.")
        return
    say(
        f"{changed} caption{'s' if changed > 1 else ''} changed; this is version {after.version} of the table."
    )
    say(f"Train on it: [bold]tunes rerun {called(tune)}[/]")
