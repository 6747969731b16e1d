"""`POST /native/v1/tunes/import`: weights that another program made, uploaded or at an address, become a tune."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from tunes_dagster.core.recipe import ImportRequest, PromptRequest, Sources
from tunes_dagster.core.texts import text_of
from tunes_dagster.gateway.accepting import View
from tunes_dagster.gateway.desk import Desk
from tunes_dagster.gateway.nesting import fields_of, files_in
from tunes_dagster.gateway.problems import invalid, of_pydantic
from tunes_dagster.gateway.rehearsal import Report
from tunes_dagster.gateway.uploads import refuse_empty
from tunes_dagster.intake.weights import Found
from tunes_dagster.registry import Tune

_EVENTS = ("tune.ready", "tune.failed", "tune.cancelled")
_PIECE = 1 << 20


class ImportBody(BaseModel):
    """What is said of the weights; the file itself is the field `file` of a multipart body."""

    model_config = ConfigDict(extra="forbid")

    url: str | None = Field(
        default=None,
        max_length=4000,
        description=f"{text_of(ImportRequest, 'url')} Without a file it needs `base`.",
    )
    name: str | None = Field(default=None, max_length=60, description=text_of(ImportRequest, "name"))
    title: str | None = Field(default=None, max_length=200, description=text_of(ImportRequest, "title"))
    token: str | None = Field(default=None, max_length=40, description=text_of(ImportRequest, "token"))
    base: str | None = Field(default=None, max_length=200, description=text_of(ImportRequest, "base"))
    alpha: float | None = Field(default=None, gt=0, description=text_of(ImportRequest, "alpha"))
    archive_url: str | None = Field(
        default=None, max_length=4000, description=text_of(ImportRequest, "sources")
    )
    image_urls: list[str] = Field(default_factory=list, max_length=10_000)
    prompts: list[PromptRequest] = Field(default_factory=list, max_length=1000)
    callback_url: str | None = Field(default=None, max_length=4000)
    labels: dict[str, str] = Field(default_factory=dict)


def take_in(mine: Desk, given: dict[str, Any]) -> Tune | Report:
    """Accept the weights that a body brings or names.

    Raises:
        HttpProblem: 422 for its fields, or weights that cannot be taken.
    """
    fields = fields_of(given, "")
    files = files_in(fields, "file", "weights")
    fields = {name: value for name, value in fields.items() if name not in ("file", "weights", "dry_run")}
    try:
        body = ImportBody.model_validate(fields)
        said = body.model_dump(exclude={"archive_url", "image_urls", "url"}, exclude_unset=True)
        sources = Sources(archive_url=body.archive_url, image_urls=body.image_urls)
        prompts = [_with_pictures(mine, one) for one in body.prompts]
        request = ImportRequest(**{**said, "url": body.url or "", "sources": sources, "prompts": prompts})
    except ValidationError as wrong:
        raise of_pydantic([dict(one) for one in wrong.errors()]) from None
    if len(files) + bool(body.url) != 1:
        raise invalid("file", "or `url` has to name one safetensors file")
    view = View(dialect="native", events=_EVENTS)
    with tempfile.TemporaryDirectory(prefix="tunes-import-") as folder:
        found = _kept(files[0], Path(folder)) if files else None
        return mine.accept_import(request, found, view)


def _with_pictures(mine: Desk, prompt: PromptRequest) -> PromptRequest:
    """Return a prompt whose pictures are the caller's own: keys of the store may lead to somebody else's.

    Raises:
        HttpProblem: 422, naming the field.
    """
    settings = prompt.settings
    given = {name: getattr(settings, name) for name in ("input_image", "mask_image")}
    kept = {name: mine.picture(name, value) for name, value in given.items() if value is not None}
    return prompt.model_copy(update={"settings": settings.model_copy(update=kept)}) if kept else prompt


def _kept(file: UploadFile, folder: Path) -> Found:
    refuse_empty(file, "file")
    path = folder / "weights"
    file.file.seek(0)
    with path.open("wb") as kept:
        while piece := file.file.read(_PIECE):
            kept.write(piece)
    return Found(path, (file.filename or "weights").rpartition("/")[2][:200])
