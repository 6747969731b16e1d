"""`tunes import`: weights that another program made become a tune."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunes_dagster.cli.flags import Account
from tunes_dagster.cli.installation import Installation, open_installation
from tunes_dagster.cli.making import (
    AsJson,
    CallbackUrl,
    Label,
    Prompts,
    Title,
    Wait,
    Word,
    say_handed_in,
)
from tunes_dagster.cli.requesting import labelled, uploaded
from tunes_dagster.core.failures import Failure, FailureCode

if TYPE_CHECKING:
    from tunes_dagster.intake.weights import Found

Source = Annotated[
    str,
    typer.Argument(
        help="A .safetensors file or peft's folder, a URL of one, or hf://owner/name@revision/file.safetensors."
    ),
]
Name = Annotated[
    Word, typer.Option(help="What the subject is: woman, dog, style … Default: what the file says.")
]
Token = Annotated[
    Word, typer.Option(help="The word that means the subject. Default: what the file says, or ohwx.")
]
Base = Annotated[Word, typer.Option(help="Base model. Default: recognised from the file.")]
Alpha = Annotated[
    float | None,
    typer.Option(help="lora_alpha of a file of peft's own that lies there without its configuration."),
]
Pictures = Annotated[
    Path | None,
    typer.Option(help="Folder or archive of pictures of the subject, by which the tune is scored."),
]


def import_(
    source: Source,
    name: Name = None,
    token: Token = None,
    title: Title = None,
    base: Base = None,
    alpha: Alpha = None,
    pictures: Pictures = None,
    prompt: Prompts = None,
    callback_url: CallbackUrl = None,
    label: Label = None,
    account: Account = "local",
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Take in a LoRA, LoHa, LoKr, DoRA or embedding of another program as a tune.

    `tunes import theirs.safetensors --token ohwx --name woman`. It is rendered, mixed, exported and deleted like any
    other, and another one may go on from it (`--base-tune-id`). What cannot be taken whole is refused by name.
    """
    from tunes_dagster.core.recipe import ImportRequest
    from tunes_dagster.core.validation import checked
    from tunes_dagster.service.importing import import_weights

    installation = open_installation()
    folder = str(pictures.resolve()) if pictures is not None and pictures.is_dir() else None
    said = {
        "name": name,
        "token": token,
        "title": title,
        "base": base,
        "alpha": alpha,
        "callback_url": callback_url,
        "labels": labelled(label or []),
        "prompts": [{"text": text} for text in prompt or []],
        "sources": _sources(installation, pictures, folder),
        "url": source if "://" in source else "",
    }
    request = checked(ImportRequest, {k: v for k, v in said.items() if v is not None}, "The request")
    with ExitStack() as stack:
        tune = import_weights(
            installation,
            request,
            _found(installation, source, stack),
            account_id=installation.registry.accounts.get(account).id,
            allow_folder=folder,
        )
    say_handed_in(installation, tune, wait, as_json)


def _sources(
    installation: Installation, pictures: Path | None, folder: str | None
) -> dict[str, object] | None:
    if pictures is None:
        return None
    if not pictures.exists():
        raise Failure(FailureCode.INVALID_REQUEST, f"There is no folder {pictures}.", "Check the path.")
    return {"folder": folder} if folder else {"uploads": [uploaded(installation, pictures)]}


def _found(installation: Installation, source: str, stack: ExitStack) -> Found:
    """Return the file that is meant, fetched into a folder that goes away with the command."""
    from tunes_dagster.intake.fetch import MB, Fetcher, FetchLimits
    from tunes_dagster.intake.weights import fetch_weights, on_this_machine

    if "://" not in source:
        return on_this_machine(Path(source))
    settings = installation.settings
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tunes-import-")))
    most = settings.import_max_mb * MB
    fetcher = stack.enter_context(
        Fetcher(allow_hosts=tuple(settings.allow_hosts), limits=FetchLimits(max_bytes=most))
    )
    return fetch_weights(source, folder, fetcher)
