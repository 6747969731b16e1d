"""Files that come in a multipart body: they are spooled to disk as they arrive and copied to the store in pieces."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from tunes_dagster.core.store import Store
from tunes_dagster.gateway.bodies import Body, too_large
from tunes_dagster.gateway.options import own_limit
from tunes_dagster.gateway.problems import HttpProblem, invalid
from tunes_dagster.gateway.service import Service
from tunes_dagster.intake.payloads import upload_key

# Fields of a form beside its files; 1000 prompts with 20 fields each.
_MAX_FIELDS = 20_000
_NUMBERED = re.compile(r"\[\d*\]$")


async def read_form(request: Body, account: dict[str, Any] | None = None) -> FormData:
    """Return the fields and files of a multipart or urlencoded body, which must keep to the limits of the account.

    Args:
        request: Whose body it is.
        account: Options of the account (`max_upload_files`, `max_upload_mb`); None takes those of the caller's key.

    Raises:
        HttpProblem: 400 for a malformed body, 413 for too many files.
    """
    desk = getattr(request.state, "desk", None)
    limits = account if account is not None else (desk.caller.options if desk is not None else {})
    service: Service = request.app.state.service
    request.state.body_limit = service.options.body_bytes(limits)
    most = min(service.options.max_upload_files, int(own_limit(limits, "max_upload_files", 10**6)))
    try:
        form = await request.fields(max_files=most, max_fields=_MAX_FIELDS)
    except (MultiPartException, HTTPException) as error:
        said = str(getattr(error, "detail", None) or getattr(error, "message", error))
        if "Too many files" in said:
            raise too_large(f"More than {most} files, which is this account's limit") from None
        raise HttpProblem(413 if "Too many" in said else 400, said, code="invalid") from None
    except (UnicodeDecodeError, ValueError, AssertionError):
        raise HttpProblem(400, "The form cannot be read: it is not well-formed", code="invalid") from None
    return form


def files_of(form: FormData, *names: str) -> list[UploadFile]:
    """Return the files of repeated fields, in their order: `images`, `images[]` and `images[0]` are one name."""
    return [
        value
        for name, value in form.multi_items()
        if _NUMBERED.sub("", name) in names and isinstance(value, UploadFile)
    ]


def refuse_empty(file: UploadFile, field: str) -> None:
    """Refuse a file without a single byte, which can be no picture.

    Raises:
        HttpProblem: 422, naming it.
    """
    if file.size == 0:
        raise invalid(field, f"has {(file.filename or '')[:80]!r}, which is empty")


def keep_files(store: Store, tune_id: str, files: Sequence[UploadFile], first: int = 0) -> list[str]:
    """Copy files into the store as uploads of a tune and return their keys; names are made harmless."""
    keys = []
    for file in files:
        refuse_empty(file, "images")
    for number, file in enumerate(files, first):
        key = upload_key(tune_id, number, file.filename or "upload")
        file.file.seek(0)
        keys.append(store.write_stream(key, file.file))
    return keys
