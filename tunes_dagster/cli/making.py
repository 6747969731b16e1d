"""`tunes train`, `tunes render` and `tunes resume`: the commands that make something."""

from __future__ import annotations

import base64
import itertools
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunes_dagster.cli.flags import Account, assignments, called, merged, takes
from tunes_dagster.cli.installation import Installation, open_installation
from tunes_dagster.cli.output import emit_json, escape, megabytes, say
from tunes_dagster.cli.requesting import build_request, given, labelled
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import DatasetOptions, RenderSettings, TrainingOptions
from tunes_dagster.intake.subject import example_prompt

if TYPE_CHECKING:
    from tunes_dagster.core.recipe import PromptRequest, TuneRequest
    from tunes_dagster.registry import Tune


Word = str | None
Words = list[str] | None
Folder = Annotated[
    Path | None,
    typer.Argument(help="Folder of pictures, with captions and a tune.yaml if you like. A zip works too."),
]
Name = Annotated[
    Word, typer.Option(help="What the pictures show, in one word: woman, man, dog, mug, style …")
]
Token = Annotated[Word, typer.Option(help="The rare word that will mean the subject. Default: ohwx.")]
Title = Annotated[Word, typer.Option(help="What you call this tune. Default: the name.")]
Base = Annotated[Word, typer.Option(help="Base model, see `tunes bases list`. Default: sdxl, or the tune's.")]
Url = Annotated[Word, typer.Option(help="URL of a zip or tar of pictures.")]
ImageUrl = Annotated[Words, typer.Option(help="URL of one picture; may be repeated.", metavar="<url>")]
Prompts = Annotated[
    Words,
    typer.Option(help="Prompt to render as soon as the tune is ready; may be repeated.", metavar="<text>"),
]
CallbackUrl = Annotated[Word, typer.Option(help="Told when it is done or has failed.")]
Label = Annotated[Words, typer.Option(help="Kept and handed back; may be repeated.", metavar="KEY=VALUE")]
Config = Annotated[
    Path | None, typer.Option(help="A tune.yaml. Default: the one in the folder, if there is one.")
]
Set = Annotated[
    Words,
    typer.Option(
        "--set", help="Any field of tune.yaml: training.rank=8; may be repeated.", metavar="FIELD=VALUE"
    ),
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Stay until it is done, or only hand it in.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


# Before a tune's pictures are there.
_NOT_THERE = ("awaiting_images", "queued", "preparing")


@takes(training=TrainingOptions, dataset=DatasetOptions)
def train(
    folder: Folder = None,
    name: Name = None,
    token: Token = None,
    title: Title = None,
    base: Base = None,
    url: Url = None,
    image_url: ImageUrl = None,
    prompt: Prompts = None,
    callback_url: CallbackUrl = None,
    label: Label = None,
    config: Config = None,
    set_: Set = None,
    account: Account = "local",
    wait: Wait = True,
    as_json: AsJson = False,
    *,
    training: dict[str, Any],
    dataset: dict[str, Any],
) -> None:
    """Fine-tune on a folder of pictures.

    `tunes train ./photos --name woman --token ohwx` trains here and now; when the daemon runs (`tunes dev`), it
    is handed over. What is given on the command line wins over tune.yaml.
    """
    said = {
        "name": name,
        "token": token,
        "title": title,
        "base": base,
        "callback_url": callback_url,
        "sources": {"archive_url": url, "image_urls": image_url},
        "prompts": [{"text": text} for text in prompt or []],
        "labels": labelled(label or []),
        "training": training,
        "dataset": dataset,
    }
    installation = open_installation()
    whole = merged(given(said), assignments(set_ or []))
    if folder is not None and not as_json:
        _say_verdict(installation, folder, config, whole)
    request, allowed = build_request(installation, folder, config, whole)
    tune = _submit(installation, request, allowed, account)
    # What lies elsewhere is fetched once, by the work; an address may be good for one time only.
    news = partial(_verdict_on, installation, tune.id) if folder is None and not as_json else None
    say_handed_in(installation, tune, wait, as_json, news)


def _verdict_on(installation: Installation, tune_id: str) -> list[str]:
    """Return what is trained on, once the pictures are there."""
    from tunes_dagster.intake.verdict import verdict_key

    key = verdict_key(tune_id)
    if installation.registry.tunes.get(tune_id).status in _NOT_THERE or not installation.store.exists(key):
        return []
    return installation.store.read_text(key).splitlines()


def _say_verdict(installation: Installation, folder: Path, config: Path | None, said: dict[str, Any]) -> None:
    """Say what would be trained on, as `tunes check` does, before anything is queued or paid."""
    from tunes_dagster.cli.checking import looked_over

    try:
        lines = looked_over(installation, folder, config, said).lines
    except Failure as failure:
        if failure.code == FailureCode.INVALID_REQUEST:
            raise
        return  # the work meets it again, and says it with its tune
    for line in lines:
        say(escape(line))


def say_handed_in(
    installation: Installation,
    tune: Tune,
    wait: bool,
    as_json: bool,
    news: Callable[[], Sequence[str]] | None = None,
) -> None:
    """Say what was accepted, stay until it is done if that is wanted, and say what came of it; `news`: see `Watch`."""
    from tunes_dagster.cli.showing import say_warnings, tune_as_dict

    if not as_json:
        subject = escape(f"{tune.token} {tune.class_name}")
        say(
            f"Tune [bold]{tune.number}[/] ({tune.id}): {escape(tune.title)}, {subject}, on {escape(tune.base_id)}"
        )
        say_warnings([tune, *installation.registry.prompts.rows(tune_id=tune.id)])
    if wait:
        from tunes_dagster.cli.following import follow

        follow(installation, tunes=[tune.id], stderr=as_json, news=news)
    elif not as_json:
        say(
            f"Handed in. A daemon that runs (`tunes dev`) does it; without one: [bold]tunes resume {called(tune)}[/]"
        )
    tune = installation.registry.tunes.get(tune.id)
    if as_json:
        emit_json(tune_as_dict(tune))
    elif wait:
        say_what_came_out(installation, tune)


def _submit(
    installation: Installation, request: TuneRequest, allowed: str | None, account: str, origin: str = "cli"
) -> Any:
    from tunes_dagster.service.submit import submit_tune

    return submit_tune(
        installation,
        request,
        account_id=installation.registry.accounts.get(account).id,
        origin=origin,
        allow_folder=allowed,
    )


def say_what_came_out(installation: Installation, tune: Any) -> None:
    """Print the files and pictures of a tune that was waited for."""
    from tunes_dagster.cli.showing import files_of, say_findings

    if tune.status == "cancelled":
        say("Cancelled. Checkpoints are kept.")
        return
    prompts = installation.registry.prompts.rows(tune_id=tune.id)
    say_findings([tune, *prompts])
    for what, key in files_of(tune):
        if installation.store.exists(key):
            size = megabytes(installation.store.size(key))
            say(f"  {what:<22} {escape(installation.store.url(key))} [dim]({size})[/]")
    for row in prompts:
        for key in row.images or []:
            say(f"  {'picture':<22} {escape(installation.store.url(key))}")
    say(
        f'Next: [bold]tunes render "{escape(example_prompt(tune.token, tune.class_name, "on the beach"))}" '
        f"--tune {called(tune)}[/]"
    )


@takes(settings=RenderSettings)
def render(
    text: Annotated[list[str], typer.Argument(help="What to render; several texts are rendered together.")],
    tune: Annotated[
        Word, typer.Option(help="Tune by number, id or title. Without one, the plain base renders.")
    ] = None,
    base: Base = None,
    out: Annotated[Path | None, typer.Option(help="Copy the pictures into this folder as well.")] = None,
    callback_url: CallbackUrl = None,
    account: Account = "local",
    wait: Wait = True,
    as_json: AsJson = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Render prompts, with a tune or on the plain base.

    `tunes render "a photo of ohwx woman in the snow" --tune 1 --num-images 4`
    """
    from tunes_dagster.cli.showing import say_findings, say_warnings
    from tunes_dagster.core.recipe import PromptRequest
    from tunes_dagster.core.validation import checked
    from tunes_dagster.service.submit import submit_prompt

    installation = open_installation()
    settings = with_files(settings)
    if out is not None:
        _make_folder(out)
    common = {"tune": tune, "base": base, "callback_url": callback_url, "settings": settings}
    requests = [checked(PromptRequest, {"text": one, **common}, "The prompt") for one in text]
    whose = installation.registry.accounts.get(account).id
    if len(requests) > 1:
        _check_all(installation, requests, whose)
    rows = [submit_prompt(installation, request, account_id=whose, origin="cli") for request in requests]
    if not as_json:
        say_warnings(rows)
    if wait:
        from tunes_dagster.cli.following import follow

        follow(installation, prompts=[row.id for row in rows], stderr=as_json)
    rows = [installation.registry.prompts.get(row.id) for row in rows]
    if as_json:
        from tunes_dagster.cli.showing import prompt_as_dict

        far = installation.registry.groups.progress_of(rows)
        emit_json([prompt_as_dict(row, far[row.id]) for row in rows])
        return
    say_findings(rows)
    for row in rows:
        if not wait:
            say(f"Prompt [bold]{row.number}[/] ({row.id}) is {row.status}.")
        for path in pictures_of(installation, row, out):
            say(escape(path))


def _make_folder(out: Path) -> None:
    """Make the folder that pictures are copied into, before anybody waits for them.

    Raises:
        Failure: `INVALID_REQUEST` when nothing can be written there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        why = "" if os.access(out, os.W_OK | os.X_OK) else "it may not be written to"
    except OSError as error:
        why = error.strerror or type(error).__name__
    if why:
        raise Failure(
            FailureCode.INVALID_REQUEST, f"No pictures can be put into {out}: {why}.", "Name another folder."
        )


def with_files(settings: dict[str, Any]) -> dict[str, Any]:
    """Return render settings with local files that they name replaced by what lies in those files.

    Raises:
        Failure: `INVALID_REQUEST` when a file that is named is not there or cannot be read.
    """
    filled = dict(settings)
    for name in ("input_image", "mask_image"):
        value = str(settings.get(name) or "")
        if os.path.isfile(value):  # noqa: PTH113 - says no to what is too long for a path, instead of failing
            try:
                filled[name] = f"data:;base64,{base64.b64encode(Path(value).read_bytes()).decode()}"
            except OSError as error:
                raise Failure(
                    FailureCode.INVALID_REQUEST,
                    f"{value} cannot be read: {error.strerror}.",
                    "Check the file.",
                ) from error
        elif _looks_like_a_file(value):
            raise Failure(FailureCode.INVALID_REQUEST, f"There is no file {value}.", "Check the path.")
    return filled


def _looks_like_a_file(value: str) -> bool:
    """Whether a text can only have been meant as a path: base64 has no dots, URLs and data URIs have a colon."""
    in_store = value.startswith(("uploads/", "blobs/", "batches/"))
    return "." in value and ":" not in value and len(value) < 1000 and not in_store


def _check_all(installation: Installation, requests: list[PromptRequest], account_id: str) -> None:
    """Refuse all of several prompts when one is wrong, instead of leaving those before it in the queue."""
    from tunes_dagster.service.completing import completed_prompt

    registry = installation.registry
    for request in requests:
        tune = registry.objects.tune_named(account_id, request.tune) if request.tune else None
        completed_prompt(installation, request, tune, account_id=account_id)


def pictures_of(installation: Installation, prompt: Any, out: Path | None = None) -> list[str]:
    """Return where the pictures of a prompt lie, copied into `out` when given."""
    store, places = installation.store, []
    for index, key in enumerate(prompt.images or []):
        place = store.url(key)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            place = str(_beside(out, f"{prompt.number:05d}-{index}", Path(key).suffix, store.read_bytes(key)))
        places.append(place)
    return places


def _beside(folder: Path, name: str, suffix: str, content: bytes) -> Path:
    """Write a file; what lies there under its name with other content, of another home say, is left alone."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    for target in (folder / f"{one}{suffix}" for one in names):
        try:
            with target.open("xb") as file:
                file.write(content)
            break
        except FileExistsError:
            if target.is_file() and target.read_bytes() == content:
                break
    return target


def resume(
    tune: Annotated[
        str | None, typer.Argument(help="Tune by number, id or title. Default: all unfinished ones.")
    ] = None,
    account: Account = "local",
) -> None:
    """Go on with work that was interrupted, failed or was only handed in, from its last checkpoint.

    A tune that is named goes on whatever it ended for; without one, all unfinished ones and those that failed for a
    reason that may have passed, such as a full disk, and left a checkpoint.
    """
    from tunes_dagster.cli.following import follow
    from tunes_dagster.service.resuming import go_on

    installation = open_installation()
    registry = installation.registry
    whose = registry.accounts.get(account).id
    named = registry.objects.tune_named(whose, tune) if tune else None
    chosen = go_on(installation, whose, named)
    prompts = [] if tune else registry.prompts.rows(status="queued", limit=1000, account_id=whose)
    if not chosen and not prompts:
        say("Nothing is waiting.")
        return
    follow(installation, tunes=[row.id for row in chosen], prompts=[row.id for row in prompts])
    for row in chosen:
        say_what_came_out(installation, registry.tunes.get(row.id))
