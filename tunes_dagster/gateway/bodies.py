"""Request bodies as they arrive: nothing that a caller may make long is ever whole in memory.

A small body is kept as it is. In a larger JSON body every text longer than `LONG_TEXT` (a picture or an archive as
base64) goes to a temporary file while it arrives, and its place is taken by a short reference, which holds its SHA-256:
what is parsed then is small, and the desk decodes the file into the store in pieces. A reference only leads to files
of its own request, so that it does not matter if a caller writes one.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import IO, Any

from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.formparsers import FormParser, MultiPartException

from tunes_dagster.gateway.problems import HttpProblem
from tunes_dagster.gateway.starlette_private import KeptRequest, PartsParser

# Bodies up to this size are parsed as they are.
SMALL_BODY = 256 * 1024
# Texts from this length on go to a file; far above what any field but a picture may hold.
LONG_TEXT = 64 * 1024
# What may be left of a body beside its long texts and files: 1000 prompts, or 10,000 addresses.
MAX_REST = 4 * 2**20
# Long texts of one body: each is an open file.
MAX_TEXTS = 100
# So much is gathered before a thread looks at it.
_PIECE = 256 * 1024
# Uploaded files up to this size stay in memory.
_SPOOLED = 64 * 1024
_REFERENCE = "text:sha256:"
# Where a key may begin that the next piece ends.
_LONGEST_KEY = 1200

# The inside of a JSON string as far as it is here: possessive, so that a long one costs no memory.
_INSIDE = re.compile(rb'(?:[^"\\]++|\\(?:u[0-9a-fA-F]{4}|[^u]))*+', re.DOTALL)
# What may be cut off at the end of a piece: the beginning of an escape sequence.
_CUT = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?\Z")


def too_large(what: str) -> HttpProblem:
    """Return the answer for a body that is too large."""
    return HttpProblem(413, what, code="too_large")


# What JSON may hold that cannot be kept or given back, or may turn out to: looked for before anything is parsed.
_SUSPECT = re.compile(rb"NaN|Infinity|\\u(?:0000|[dD][89a-fA-F])|[eE]\+?\d\d\d")
_TEXT_ENCODINGS = ("utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1", "latin1", "windows-1252")


def check_values(value: Any) -> None:
    """Refuse texts with NUL or half a surrogate pair, and numbers that are none: databases and JSON have neither.

    Raises:
        HttpProblem: 400.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            check_values(key)
            check_values(inner)
    elif isinstance(value, list):
        for inner in value:
            check_values(inner)
    elif isinstance(value, float) and not math.isfinite(value):
        raise HttpProblem(400, "The body holds a number that is too large, or none", code="invalid")
    elif isinstance(value, str) and not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise HttpProblem(400, "The body holds half a character", code="invalid") from None
    if isinstance(value, str) and "\x00" in value:
        raise HttpProblem(400, "The body holds a character that no text has", code="invalid")


class LongTexts:
    """Takes a JSON document in pieces and keeps its long texts in files.

    Attributes:
        rest: The document, with references where long texts were.
        files: Reference → the text, in a temporary file that is gone when it is closed.
    """

    def __init__(self) -> None:
        self.rest = bytearray()
        self.files: dict[str, IO[bytes]] = {}
        self._inside = False
        self._start = 0  # of the current text in `rest`
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self._cut = b""

    def feed(self, piece: bytes) -> None:
        """Take the next piece.

        Raises:
            HttpProblem: 413 when too much is left, or there are too many long texts; 400 for a broken escape sequence.
        """
        piece, at = self._cut + piece, 0
        self._cut = b""
        while at < len(piece):
            at = self._text(piece, at) if self._inside else self._between(piece, at)
            if len(self.rest) > MAX_REST:
                raise too_large(
                    f"The body has more than {MAX_REST // 2**20} MB beside its pictures and archives"
                )

    def close(self) -> None:
        """Drop the files."""
        for file in (*self.files.values(), *([self._file] if self._file else [])):
            file.close()

    def _between(self, piece: bytes, at: int) -> int:
        quote = piece.find(b'"', at)
        end = len(piece) if quote < 0 else quote + 1
        self.rest += piece[at:end]
        self._inside, self._start = quote >= 0, len(self.rest)
        return end

    def _text(self, piece: bytes, at: int) -> int:
        found = _INSIDE.match(piece, at)
        end = found.end() if found else at
        self._take(piece[at:end])
        if end == len(piece):
            return end
        if piece[end] == ord('"'):
            self._end()
            return end + 1
        if _CUT.match(piece, end) is None:
            raise HttpProblem(400, "The body is not valid JSON", code="invalid")
        self._cut = piece[end:]
        return len(piece)

    def _take(self, part: bytes) -> None:
        if self._file is None:
            self.rest += part
            if len(self.rest) - self._start <= LONG_TEXT:
                return
            if len(self.files) >= MAX_TEXTS:
                raise too_large(f"The body has more than {MAX_TEXTS} pictures or archives")
            part = bytes(self.rest[self._start :])
            del self.rest[self._start :]
            self._file, self._digest = tempfile.TemporaryFile(), hashlib.sha256()  # noqa: SIM115 - closed by `close`
        plain = _unescaped(part)
        self._digest.update(plain)
        self._file.write(plain)

    def _end(self) -> None:
        if self._file is not None:
            name = _REFERENCE + self._digest.hexdigest()
            if name in self.files:
                self._file.close()
            else:
                self.files[name] = self._file
            self.rest += name.encode()
            self._file = None
        self.rest += b'"'
        self._inside = False


def _text_of(inside: bytes) -> str:
    """Return the text that the inside of a JSON string means; "" for what is none."""
    try:
        return str(json.loads(b'"' + inside + b'"'))
    except ValueError:
        return ""


def _unescaped(part: bytes) -> bytes:
    """Return a part of a JSON string as the text it means: `\\/` and `\\u002B` are common in base64.

    A letter outside of ASCII that the end of a part cuts is not kept: such a text is no base64 anyway.
    """
    if b"\\" not in part:
        return part
    try:
        text = '"' + part.decode("utf-8", "replace") + '"'
        return str(json.loads(text, strict=False)).encode("utf-8", "surrogatepass")
    except ValueError:
        raise HttpProblem(400, "The body is not valid JSON", code="invalid") from None


def misplaced(
    parsed: Any, files: dict[str, IO[bytes]], fields: frozenset[str], name: str = ""
) -> Iterator[str]:
    """Yield the fields of a document that hold a long text although they are none of those that may."""
    if isinstance(parsed, dict):
        for key, value in parsed.items():
            if key in files:
                yield "the name of a field"
            yield from misplaced(value, files, fields, key)
    elif isinstance(parsed, list):
        for value in parsed:
            yield from misplaced(value, files, fields, name)
    elif isinstance(parsed, str) and parsed in files and name not in fields:
        yield name or "the body"


class _Parts(PartsParser):
    """Keeps no more than a little of each file, and of all fields together, in memory."""

    spool_max_size = _SPOOLED
    texts = 0

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """Count what does not go to a file."""
        if not self.in_file:
            self.texts += end - start
            if self.texts > MAX_REST:
                raise too_large(f"The form has more than {MAX_REST // 2**20} MB beside its files")
        super().on_part_data(data, start, end)


class Body(KeptRequest):
    """A request whose body keeps to the limits of its caller while it arrives.

    `state.body_limit` (bytes) ends it earlier than the server's own limit; see `middleware.Manners`.
    """

    payloads: frozenset[str] = frozenset()
    """Names of the fields that may hold a picture or an archive as text."""
    key_field = ""
    """Name of the field that holds the caller's key, where an API has it in the body."""
    _early: bytearray | None = None
    _incoming: AsyncGenerator[bytes] | None = None

    async def shown_key(self) -> str:
        """Return the key in the body, taking no more of it than it needs; "" when the body is over without one.

        Who sends it is unknown until then, so the server's limit for those holds (`GatewayOptions.unkeyed_body_kb`).
        What is found is checked once the body is whole, see `check_key`.

        Raises:
            HttpProblem: 401 when that much came without a key, 408.
        """
        shown = re.compile(
            rb'"%s"\s{0,99}:\s{0,99}"((?:[^"\\]|\\.){1,400})"' % self.key_field.encode(), re.DOTALL
        )
        looked_at = 0
        self._incoming, self._early = self.stream(), bytearray()
        async for chunk in self._incoming:
            self._early += chunk
            if found := shown.search(self._early, max(0, looked_at - _LONGEST_KEY)):
                return _text_of(found.group(1))
            looked_at = len(self._early)
        return ""

    async def check_key(self, secret: str) -> None:
        """Make sure that the field of a whole body holds no other key than the one that was acted upon.

        Raises:
            HttpProblem: 401.
        """
        try:
            parsed = json.loads(await self.body() or b"{}")
        except (ValueError, RecursionError):
            return  # whoever parses it says so
        given = parsed.get(self.key_field) if isinstance(parsed, dict) else None
        if given not in (None, "", secret):
            raise HttpProblem(401, "The body holds another API key than it began with", code="unauthorized")

    async def _arriving(self) -> AsyncGenerator[bytes]:
        """Yield the body from its beginning, whatever was looked at already."""
        if self._incoming is None or self.kept_body is not None:  # what is whole already is given again
            self._incoming = self.stream()
        if self._early:
            yield bytes(self._early)
            self._early = None
        async for chunk in self._incoming:
            yield chunk

    async def body(self) -> bytes:
        """Return the body, with references in place of its long texts; those are in `long_texts`.

        Raises:
            HttpProblem: 400, 401, 413.
        """
        whole = self.kept_body
        if whole is None:
            whole = self.kept_body = await self._read()
            self._is_json_after_all(whole)
            self._refuse_the_impossible(whole)
        return whole

    def _is_json_after_all(self, whole: bytes) -> None:
        """Call a body JSON that is: `curl -d` sends it as a form, `fetch` as text, when nobody names its type."""
        if "json" not in self.headers.get("content-type", "json") and whole.lstrip().startswith(b"{"):
            headers = [pair for pair in self.scope["headers"] if pair[0] != b"content-type"]
            self.scope["headers"][:] = [*headers, (b"content-type", b"application/json")]

    def _refuse_the_impossible(self, whole: bytes) -> None:
        if self._is_form() or _SUSPECT.search(whole) is None:
            return
        try:
            parsed = json.loads(whole)
        except (ValueError, RecursionError):
            return  # whoever parses it says so
        check_values(parsed)

    def _is_form(self) -> bool:
        return self.headers.get("content-type", "").lower().startswith("application/x-www-form-urlencoded")

    @property
    def long_texts(self) -> dict[str, IO[bytes]]:
        """Reference → text of everything that is too long to be kept in memory."""
        return getattr(self.state, "long_texts", {})

    async def _read(self) -> bytes:
        pending = bytearray()
        texts: LongTexts | None = None
        async with aclosing(self._arriving()) as stream:
            async for chunk in stream:
                pending += chunk
                if texts is None and len(pending) > SMALL_BODY:
                    if not self._is_form() or pending.lstrip()[:1] == b"{":
                        texts = self._spool()
                    elif len(pending) > MAX_REST:
                        raise too_large(
                            "So much text is not taken as a form: send pictures as files, or as JSON"
                        )
                if texts is not None and len(pending) >= _PIECE:
                    await run_in_threadpool(texts.feed, bytes(pending))
                    pending.clear()
        if texts is None:
            return bytes(pending)
        await run_in_threadpool(texts.feed, bytes(pending))
        return await run_in_threadpool(self._checked, texts)

    def _spool(self) -> LongTexts:
        if getattr(self.state, "account", None) is None:
            raise HttpProblem(401, "Invalid or missing API key", code="unauthorized")
        texts = LongTexts()
        self.state.spooled, self.state.long_texts = texts, texts.files
        return texts

    def _checked(self, texts: LongTexts) -> bytes:
        rest = bytes(texts.rest)
        try:
            wrong = sorted(set(misplaced(json.loads(rest), texts.files, self.payloads)))
        except (ValueError, RecursionError):
            return rest  # whoever parses it says so
        if wrong:
            said = "is too long"
            raise HttpProblem(422, f"{wrong[0]} {said}", {name: [said] for name in wrong}, code="invalid")
        return rest

    async def fields(self, max_files: int, max_fields: int) -> FormData:
        """Return a multipart or urlencoded body; files lie on disk.

        Raises:
            HttpProblem: 413.
            MultiPartException: When it cannot be read.
        """
        if self.kept_form is not None:
            return self.kept_form
        kind, options = parse_options_header(self.headers.get("content-type"))
        if options.get(b"charset", b"utf-8").decode("latin-1").lower() not in _TEXT_ENCODINGS:
            raise MultiPartException("The form's charset is not one of " + ", ".join(_TEXT_ENCODINGS))
        limits = {"max_fields": max_fields, "max_part_size": MAX_REST}
        async with aclosing(self._arriving()) as stream:
            if kind == b"multipart/form-data":
                form = await _Parts(self.headers, stream, max_files=max_files, **limits).parse()
            else:
                form = await FormParser(self.headers, stream, **limits).parse()
        self.kept_form = form  # before it is looked at: what is kept is closed in the end
        for name, value in form.multi_items():
            check_values([name, value] if isinstance(value, str) else [name])
        return form

    def drop(self) -> None:
        """Close every file of the body that is no form."""
        texts: LongTexts | None = getattr(self.state, "spooled", None)
        if texts is not None:
            texts.close()


def body_of(**choices: Any) -> type[Body]:
    """Return the request class of a dialect.

    Args:
        choices: `payloads` and `key_field` of `Body`.
    """
    return type("Body", (Body,), choices)
