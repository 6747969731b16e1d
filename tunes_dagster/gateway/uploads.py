"""Files that come in a multipart body: they are spooled to disk as they arrive and copied to the store in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from tunes_dagster.gateway.problems import Problem
from tunes_dagster.gateway.service import Service
from tunes_dagster.intake.payloads import upload_key
from tunes_dagster.store import Store

# Fields of a form beside its files; 1000 prompts with 20 fields each.
_MAX_FIELDS = 20_000


async def read_form(request: Request, service: Service) -> FormData:
    """Return the fields and files of a multipart or urlencoded body.

    Raises:
        Problem: 400 for a malformed body, 413 for too many files.
    """
    try:
        return await request.form(
            max_files=service.options.max_upload_files + 1, max_fields=_MAX_FIELDS, max_part_size=64 << 20
        )
    except MultiPartException as error:
        status = 413 if "Too many" in str(error) else 400
        raise Problem(status, str(error), code="invalid") from None
    except (UnicodeDecodeError, ValueError, AssertionError) as error:
        raise Problem(400, f"The form cannot be read: {error}", code="invalid") from None


def files_of(form: FormData, *names: str) -> list[UploadFile]:
    """Return the files of repeated fields, in their order."""
    return [value for name, value in form.multi_items() if name in names and isinstance(value, UploadFile)]


def keep_files(store: Store, tune_id: str, files: Sequence[UploadFile], first: int = 0) -> list[str]:
    """Copy files into the store as uploads of a tune and return their keys; names are made harmless."""
    keys = []
    for number, file in enumerate(files, first):
        key = upload_key(tune_id, number, file.filename or "upload")
        file.file.seek(0)
        keys.append(store.write_stream(key, file.file))
    return keys
