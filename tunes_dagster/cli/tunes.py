"""`tunes list | status | cancel | export`: looking after tunes."""

from __future__ import annotations

import filecmp
import tempfile
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tunes_dagster.cli.flags import Account, Which, called
from tunes_dagster.cli.installation import Installation, open_installation
from tunes_dagster.cli.output import emit_json, escape, megabytes, say, styled
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.service.download import Download, downloads, pieces
from tunes_dagster.service.waiting import reasons, unused_drops

if TYPE_CHECKING:
    from tunes_dagster.registry import Registry, Tune

# Of a title in the name of a file; file systems take 255 in all.
_NAME_BYTES = 60
# Files that are being written have this before their name; after so long without a byte, whoever wrote is gone.
_HALF, _HALF_SECONDS = ".exporting-", 3600.0
_OPEN_PROMPTS = ("waiting", "queued", "rendering")
# Of those that are open; `tunes list --prompts --limit` shows more.
_MOST_PROMPTS = 20
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def list_tunes(
    status: Annotated[
        str | None, typer.Option(help="Only tunes in this state: ready, training, failed …")
    ] = None,
    limit: Annotated[int, typer.Option(help="At most so many, newest first.", min=1)] = 20,
    prompts: Annotated[bool, typer.Option("--prompts", help="List prompts instead of tunes.")] = False,
    tune: Annotated[str | None, typer.Option(help="With --prompts: only those of this tune.")] = None,
    account: Account = "local",
    everybody: Annotated[bool, typer.Option("--all-accounts", help="Those of every account.")] = False,
    as_json: AsJson = False,
) -> None:
    """List tunes, newest first."""
    from tunes_dagster.cli.showing import prompt_as_dict, say_prompts, say_tunes, tune_as_dict

    registry = open_installation().registry
    whose = None if everybody else registry.accounts.get(account).id
    if prompts:
        tune_id = registry.objects.tune_named(account, tune, deleted=True).id if tune else None
        rows = registry.prompts.rows(tune_id=tune_id, status=status, limit=limit, account_id=whose)
        waiting, far = reasons(registry, rows), registry.groups.progress_of(rows)
        if as_json:
            emit_json([prompt_as_dict(row, far[row.id], waiting.get(row.id)) for row in rows])
        else:
            say_prompts(rows, far, waiting)
        return
    if tune is not None:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            "--tune goes with --prompts.",
            f"Its prompts: tunes list --prompts --tune {tune}. It alone: tunes status {tune}.",
        )
    found = registry.tunes.rows(status=status, limit=limit, account_id=whose)
    if as_json:
        emit_json([tune_as_dict(row) for row in found])
    elif found:
        say_tunes(found)
    elif registry.tunes.count():
        of = "" if everybody else f" of the account {account}"
        say(escape(f"No tune{of} is {status}." if status else f"There is no tune{of}."))
    else:
        say(
            "No tunes yet. Make one: [bold]tunes demo[/], or [bold]tunes train ./photos --name woman --token ohwx[/]"
        )


def status(
    tune: Annotated[
        str | None, typer.Argument(help="Tune by number, id or title. Default: everything open.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it until it is done.")] = False,
    account: Account = "local",
    as_json: AsJson = False,
) -> None:
    """Say where tunes stand: phase, step, time left, timeline, files."""
    from tunes_dagster.cli.showing import prompt_as_dict, say_tune, tune_as_dict

    registry = open_installation().registry
    if tune is None:
        _overall(registry, account, watch, as_json)
        return
    row = registry.objects.tune_named(account, tune, deleted=True)
    if watch:
        _watch(registry, [row.id])
        row = registry.tunes.get(row.id)
    rows = registry.prompts.rows(tune_id=row.id, limit=50)
    waiting, far = reasons(registry, rows), registry.groups.progress_of(rows)
    if as_json:
        said = [prompt_as_dict(prompt, far[prompt.id], waiting.get(prompt.id)) for prompt in rows]
        emit_json({**tune_as_dict(row), "prompts": said})
        return
    say_tune(row, registry.events.of(row.id), rows, far, waiting)


def _overall(registry: Registry, account: str, watch: bool, as_json: bool) -> None:
    from tunes_dagster.cli.showing import say_prompts, say_tunes, say_unused, tune_as_dict
    from tunes_dagster.cli.watching import TUNE_OVER

    drops = unused_drops(registry)
    if not as_json:
        say_unused(drops)
    rows = registry.tunes.rows(limit=200, account_id=registry.accounts.get(account).id)
    busy = [row for row in rows if row.status not in TUNE_OVER]
    if watch and busy:
        _watch(registry, [row.id for row in busy])
        busy = [registry.tunes.get(row.id) for row in busy]
    if as_json:
        emit_json([tune_as_dict(row) for row in busy])
        return
    account_id = registry.accounts.get(account).id
    prompts = registry.prompts.rows(status=_OPEN_PROMPTS, limit=_MOST_PROMPTS, account_id=account_id)
    if busy:
        say_tunes(busy)
    if prompts:
        say_prompts(prompts, registry.groups.progress_of(prompts), reasons(registry, prompts))
    if not busy and not prompts:
        say(
            f"Nothing is open; {'one tune is' if len(rows) == 1 else f'{len(rows)} tunes are'} there (`tunes list`)."
            if rows
            else "No tunes yet: tunes demo"
        )


def _watch(registry: Registry, tunes: list[str]) -> None:
    from tunes_dagster.cli.watching import Watch, show_while

    show_while(Watch(registry, tunes))


def cancel(
    tune: Which,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep", help="Stop training here and make the tune ready with what it learned so far."
        ),
    ] = False,
    account: Account = "local",
) -> None:
    """Stop a tune. Its checkpoints are kept; tunes that train in the same run go on."""
    registry = open_installation().registry
    row = registry.objects.tune_named(account, tune)
    registry.work.cancel_tune(row.id, keep=keep)
    after = registry.tunes.get(row.id)
    if after.status == "ready":
        say(f"What was done again of tune {row.number} stops; it stays ready with the weights it has.")
    elif after.status == "cancelled":
        say(f"Tune {row.number} is cancelled.")
    else:
        what = "stops and becomes ready with what it learned" if keep else "stops"
        say(
            f"Tune {row.number} is {styled(after.status)} and {what} at its next step. See: tunes status {called(row)}"
        )


def export(
    tune: Which,
    format: Annotated[
        Literal["all", "diffusers", "kohya"],
        typer.Option(
            "--format", help="One layout only: diffusers for diffusers, kohya for ComfyUI, Forge and A1111."
        ),
    ] = "all",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write to, or with --format the file. Default: a folder in exports/ of the home folder."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite other files of these names.")] = False,
    account: Account = "local",
) -> None:
    """Write a tune's weights as files that other programs load, and say which program takes which.

    A LoRA is a safetensors file in two layouts; a whole model (kind checkpoint) is the zip of a diffusers folder.
    """
    installation = open_installation()
    row = installation.registry.objects.tune_named(account, tune)
    files = _wanted(installation, row, format)
    folder = installation.settings.resolved_home / "exports" / f"{row.number}-{_file_name(row.title)}"
    names = {one.form: _export_name(row, one) for one in files}
    if out is not None and out.suffix == PurePosixPath(files[0].key).suffix:  # a file's name, so one layout
        files = [one for one in files if one.form != "kohya" or one is files[0]]
        folder, names[files[0].form] = out.parent, out.name
    elif out is not None:
        folder = out
    folder.mkdir(parents=True, exist_ok=True)
    for one in files:
        target = folder / names[one.form]
        _write(installation, one.key, target, force)
        say(f"{escape(str(target))} [dim]({megabytes(target.stat().st_size)})[/]")
        say(f"  [dim]for {escape(one.programs)}[/]")
    say(f"Trigger: [bold]{escape(f'{row.token} {row.class_name}')}[/] on {row.base_id}")


def _export_name(row: Tune, file: Download) -> str:
    """Return what a file is called; words keep the name by which programs find them."""
    if file.form == "embeddings":
        return file.name
    return f"{_file_name(row.title)}-{row.token}-{file.form}{PurePosixPath(file.key).suffix}"


def _wanted(installation: Installation, row: Tune, form: str) -> list[Download]:
    """Return the files to export; the words of a pti tune come with every layout."""
    made, every = row.made, downloads(row)
    if form == "kohya" and made.weights_key and not made.kohya_key:
        kinds = {"checkpoint": "a whole model", "faceid": "a face, not weights,"}
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"Tune {row.number} is {kinds.get(row.kind, 'a DoRA of an earlier version,')} which has no kohya layout.",
            "Leave --format out: it is exported as diffusers reads it.",
        )
    if not every or not installation.store.exists(made.weights_key):
        raise Failure(
            FailureCode.CONFLICT,
            f"Tune {row.number} has no weights yet; it is {row.status}.",
            f"Look at it with: tunes status {called(row)}",
        )
    return [one for one in every if form == "all" or one.form in (form, "embeddings")]


def _write(installation: Installation, key: str, target: Path, force: bool) -> None:
    """Write a file from the store; what lies there already with other content is left alone unless `force`."""
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=_HALF, delete=False) as file:
        try:
            _forget_halves(Path(file.name))
            for piece in pieces(installation.store, key):
                file.write(piece)
            file.close()
            if target.exists() and not force and not filecmp.cmp(file.name, target, shallow=False):
                raise Failure(
                    FailureCode.CONFLICT,
                    f"{target} is there already and holds something else.",
                    "Name another folder with --out, or overwrite it with --force.",
                )
            Path(file.name).chmod(0o644)
            Path(file.name).replace(target)
        finally:
            Path(file.name).unlink(missing_ok=True)


def _forget_halves(mine: Path) -> None:
    """Remove what exports that were killed left beside a file that was just begun; others write all the time."""
    now = mine.stat().st_mtime
    for half in mine.parent.glob(f"{_HALF}*"):
        with suppress(OSError):
            if now - half.stat().st_mtime > _HALF_SECONDS:
                half.unlink()


def _file_name(title: str) -> str:
    plain = "-".join("".join(c if c.isalnum() or c == "_" else " " for c in title).lower().split())
    return plain.encode()[:_NAME_BYTES].decode(errors="ignore").strip("-") or "tune"
