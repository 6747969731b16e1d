"""What is used of Starlette without its promise: the only file that touches names of it which begin with `_`.

`tests/gateway/test_private_starlette.py` pins them, and `tests/test_private_parts.py` finds such names anywhere else.
"""

from __future__ import annotations

from starlette.datastructures import FormData
from starlette.formparsers import MultiPartParser
from starlette.requests import Request


class KeptRequest(Request):
    """A request whose body and form may be read by somebody else than Starlette.

    Nothing public hands `Request` what was read: its own `stream`, `json`, `form` and `close`, and FastAPI through
    them, look for it under these names.
    """

    @property
    def kept_body(self) -> bytes | None:
        """The body, once it is whole; None before."""
        return getattr(self, "_body", None)

    @kept_body.setter
    def kept_body(self, body: bytes) -> None:
        self._body = body

    @property
    def kept_form(self) -> FormData | None:
        """The form, once it is read; None before."""
        return self._form

    @kept_form.setter
    def kept_form(self, form: FormData) -> None:
        self._form = form


class PartsParser(MultiPartParser):
    """A parser of forms that says of what arrives whether it belongs to a file.

    Public are limits for the size of each text and the number of all; none for what all of them hold together.
    """

    @property
    def in_file(self) -> bool:
        """Whether the part that arrives now is a file."""
        return self._current_part.file is not None
