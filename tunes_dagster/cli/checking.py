"""`tunes check`: what would be trained on, before anything is queued or paid."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunes_dagster.cli.flags import assignments, merged
from tunes_dagster.cli.installation import open_installation
from tunes_dagster.cli.making import AsJson, Base, Config, Name, Set, Token
from tunes_dagster.cli.output import emit_json, escape, say
from tunes_dagster.cli.requesting import build_request
from tunes_dagster.core.failures import Failure

if TYPE_CHECKING:
    from tunes_dagster.cli.installation import Installation
    from tunes_dagster.service.looking import Looked

Source = Annotated[str, typer.Argument(help="Folder, archive, or URL of an archive of pictures.")]


def check(
    source: Source,
    name: Name = None,
    token: Token = None,
    base: Base = None,
    config: Config = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Say what a tune of these pictures would be trained on: each picture, its crop and caption, and what is left out.

    Nothing is queued, paid or kept. Takes the options of `tunes train` by `--set`. A captioner is not asked.
    """
    given: dict[str, Any] = {"name": name, "token": token, "base": base}
    if "://" in source:
        given["sources"] = {"archive_url": source}
    said = {key: value for key, value in given.items() if value is not None}
    place = None if "://" in source else Path(source)
    seen = looked_over(open_installation(), place, config, merged(said, assignments(set_ or [])), "subject")
    if as_json:
        emit_json({"verdict": seen.lines, "pictures": seen.manifest.records()})
    else:
        for line in seen.lines:
            say(escape(line))
    if seen.failure is not None:
        raise Failure(seen.failure.code, "A tune of these pictures would fail.", seen.failure.remedy)


def looked_over(
    installation: Installation,
    source: Path | None,
    config: Path | None,
    said: dict[str, Any],
    nameless: str = "",
) -> Looked:
    """Return what a tune would be trained on; of it nothing is kept. See `build_request`."""
    from tunes_dagster.resources.models import FaceDetectorResource
    from tunes_dagster.resources.network import FetcherResource
    from tunes_dagster.service.installation import Installation
    from tunes_dagster.service.looking import look_over, passing_store

    settings = installation.settings
    folder, store = passing_store()
    with folder, Installation(settings, store=store, catalog=installation.catalog) as passing:
        request, _ = build_request(passing, source, config, said, nameless)
        with FetcherResource().open(settings) as fetcher:
            return look_over(request, passing, fetcher, FaceDetectorResource().open(settings))
