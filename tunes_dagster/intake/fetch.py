"""The one fetcher: everything that comes from a URL of a caller comes through here.

A download streams to a file under limits of size, time and kind, through the guard's addresses only, follows
redirects by hand so that each hop is checked, retries what may pass, and resumes with Range where the server
says that the content is still the same. Its deadline holds in every phase, see `streams.Deadline`.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

import httpx
import tenacity

from tunes_dagster.core.failures import Failure, FailureCode, detail_of
from tunes_dagster.core.urls import Url, parse_url, show_url
from tunes_dagster.intake.guard import Guard, Resolver, guarded_client
from tunes_dagster.intake.streams import Deadline, DeadlinePassed, in_words

SourceKind = Literal["picture", "archive"]

MB = 1024 * 1024
# Answers that may be different a moment later; all other 4xx are final.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# A server that says one of these sends a page about the file (a login, an error), not the file.
_PAGES = ("text/html", "application/xhtml", "text/css", "application/javascript")


@dataclass(frozen=True)
class Fetched:
    """One finished download.

    Attributes:
        url: As asked for.
        path: The local file.
        name: File name that the server or the URL gives.
        bytes: Size.
        sha256: Hash of the content, hex.
    """

    url: str
    path: Path
    name: str
    bytes: int
    sha256: str


@dataclass
class _Part:
    """What is known about a half-finished download."""

    path: Path
    validator: str | None = None
    have: int = 0
    name: str = ""

    def restart(self) -> None:
        """Forget the content."""
        self.path.unlink(missing_ok=True)
        self.have, self.validator = 0, None


class _TryAgain(Exception):
    """An answer that may be different a moment later."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.why, self.after = why, after


@dataclass(frozen=True, kw_only=True)
class FetchLimits:
    """What downloads may take.

    Attributes:
        max_bytes: Largest archive.
        max_picture_bytes: Largest picture; 64 MB holds a 16-bit PNG of 10 megapixels.
        timeout: Seconds to connect, and of silence while reading.
        total_seconds: Seconds one download may take, from the lookup of the name to the last byte, redirects, waits
            and further tries included.
        attempts: Tries per download.
        concurrency: Downloads at a time.
        max_redirects: Hops per try.
        backoff_seconds: First wait between tries; doubles each time, at most 30 s.
    """

    max_bytes: int = 2048 * MB
    max_picture_bytes: int = 64 * MB
    timeout: float = 15.0
    total_seconds: float = 1800.0
    attempts: int = 4
    concurrency: int = 8
    max_redirects: int = 5
    backoff_seconds: float = 0.5


class Fetcher:
    """Downloads what callers name, inside limits.

    Args:
        allow_hosts: Hosts by name that may be private, see `Guard`.
        limits: Of size, time and number.
        resolver: See `Guard`.
    """

    def __init__(
        self,
        allow_hosts: Sequence[str] = (),
        limits: FetchLimits | None = None,
        *,
        resolver: Resolver | None = None,
    ) -> None:
        self.guard, self.limits = Guard(allow_hosts, resolver), limits or FetchLimits()
        self._client = guarded_client(
            self.guard, timeout=self.limits.timeout, max_connections=4 * self.limits.concurrency
        )

    def __enter__(self) -> Fetcher:
        """Return the fetcher."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close its connections."""
        self.close()

    def close(self) -> None:
        """Close all connections; the fetcher cannot be used afterwards."""
        self._client.close()

    def fetch(
        self, url: str, path: Path, kind: SourceKind = "picture", *, stop: threading.Event | None = None
    ) -> Fetched:
        """Download one URL to a file.

        Args:
            url: http or https.
            path: Where the content goes; overwritten.
            kind: Decides the size limit and the words of a refusal.
            stop: Set it to end the download early.

        Raises:
            Failure: `SOURCE_REFUSED` for what will not get better (inside addresses, too large, not found,
                a web page), `SOURCE_UNREACHABLE` when every try failed, `TIMED_OUT` after `limits.total_seconds`.
            Cancelled: Soon after `stop` was set.
        """
        part = _Part(path=path.with_name(path.name + ".part"))
        part.restart()
        waiter = tenacity.wait_exponential_jitter(
            multiplier=self.limits.backoff_seconds, max=30.0, jitter=self.limits.backoff_seconds
        )

        def wait_for(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.after if isinstance(error, _TryAgain) else None
            return min(asked, 30.0) if asked is not None else waiter(state)

        deadline = Deadline(self.limits.total_seconds, stop)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type((httpx.TransportError, _TryAgain)),
            stop=tenacity.stop_after_attempt(self.limits.attempts)
            | tenacity.stop_before_delay(self.limits.total_seconds),
            wait=wait_for,
            sleep=deadline.sleep,
            reraise=True,
        )
        try:
            with deadline:
                retrying(self._attempt, url, part, kind, deadline)
        except (httpx.TransportError, _TryAgain) as error:
            part.restart()
            tries = retrying.statistics.get("attempt_number", 1)
            raise Failure(
                FailureCode.SOURCE_UNREACHABLE,
                f"{show_url(url)} could not be fetched after {tries} {'try' if tries == 1 else 'tries'}: "
                f"{_words(error)}.",
                "Check that the address opens in a browser without signing in, then try again.",
                detail_of(error),
            ) from error
        except DeadlinePassed:
            part.restart()
            raise Failure(
                FailureCode.TIMED_OUT,
                f"{show_url(url)} took longer than {self.limits.total_seconds:g} s.",
                "Offer the file from a faster place, or hand it over as an upload.",
            ) from None
        except BaseException:
            part.restart()
            raise
        part.path.replace(path)
        name = part.name or _name_in(url)
        return Fetched(url, path, name, part.have, _sha256(path))

    def _attempt(self, url: str, part: _Part, kind: SourceKind, deadline: Deadline) -> None:
        limit = self.limits.max_bytes if kind == "archive" else self.limits.max_picture_bytes
        at = self.guard.check_url(url)
        for _ in range(self.limits.max_redirects + 1):
            headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
            if part.have and part.validator:
                headers |= {"Range": f"bytes={part.have}-", "If-Range": part.validator}
            elif part.have:
                part.restart()
            request = self._client.build_request("GET", headers=headers, **at.request())
            with closing(_send(self._client, request, url)) as answer:
                if answer.status_code in _REDIRECTS and "location" in answer.headers:
                    at = self._redirected(at, answer.headers["location"])
                    continue
                self._take(answer, part, limit, url, deadline)
                return
        raise _refusal(
            url, f"redirects more than {self.limits.max_redirects} times", "Give the final address."
        )

    def _redirected(self, at: Url, location: str) -> Url:
        """Return where a redirect leads, checked like the address that was given."""
        return self.guard.check_url(at.joined(location).text)

    def _take(self, answer: httpx.Response, part: _Part, limit: int, url: str, deadline: Deadline) -> None:
        """Check an answer and append its content to the part."""
        _check_status(answer, part, url)
        resumed = answer.status_code == 206
        if not resumed:
            part.restart()
            part.validator = _validator(answer)
        _check_kind(answer, url)
        part.name = part.name or _name_given(answer)
        said = answer.headers.get("content-length", "")
        announced = int(said) if said.isdecimal() and len(said) < 19 else 0
        if part.have + announced > limit or len(said) > 18:
            raise _too_large(url, limit)
        with part.path.open("ab") as file:
            for chunk in answer.iter_raw():  # as it comes: a fixed size would wait for a dripping server
                part.have += len(chunk)
                if part.have > limit:
                    raise _too_large(url, limit)
                file.write(chunk)
                deadline.left()
        if part.have == 0:
            raise _TryAgain("the answer was empty")


def _send(client: httpx.Client, request: httpx.Request, url: str) -> httpx.Response:
    """Send a request for streaming; a redirect to a malformed address becomes a refusal."""
    try:
        return client.send(request, stream=True)
    except httpx.RemoteProtocolError as error:
        if "location header" not in str(error):  # httpx reads the target of redirects it does not follow
            raise
        raise _refusal(url, "redirects to what is not a URL", "Give the final address.") from None


def _check_status(answer: httpx.Response, part: _Part, url: str) -> None:
    status = answer.status_code
    if status == 416 and part.have:
        part.restart()
        raise _TryAgain("the file changed while it was fetched")
    if status == 206:
        match = re.match(r"bytes ([0-9]{1,18})-", answer.headers.get("content-range", ""))
        if not (part.have and match and int(match[1]) == part.have):
            part.restart()
            raise _TryAgain("the server sent another range than asked for")
    elif status in _PASSING:
        after = answer.headers.get("retry-after", "")
        wait = float(after) if after.isdecimal() and len(after) < 9 else None
        raise _TryAgain(f"the server answered {status}", wait)
    elif status != 200:
        raise _refusal(
            url,
            f"was answered with {status} {answer.reason_phrase}".rstrip(),
            "Check that the address opens in a browser without signing in.",
        )


def _check_kind(answer: httpx.Response, url: str) -> None:
    kind = answer.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind.startswith(_PAGES):
        raise _refusal(
            url,
            f"is a web page ({kind}), not a file",
            "Give the direct address of the file, not of its page.",
        )
    encoding = answer.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        # Unpacking what was not asked for would open the door to bombs, and breaks resuming.
        raise _refusal(url, f"is sent with the encoding {encoding!r}", "Serve the file as it is.")


def _validator(answer: httpx.Response) -> str | None:
    """Return what If-Range may carry: a strong ETag, else the date, else nothing (no resume)."""
    if answer.headers.get("accept-ranges", "").lower() == "none":
        return None
    tag = answer.headers.get("etag", "")
    found = tag if tag and not tag.startswith("W/") else answer.headers.get("last-modified")
    return found if found and found.isascii() else None


def _name_given(answer: httpx.Response) -> str:
    said = answer.headers.get("content-disposition", "")
    match = re.search(r"filename\*=(?:[\w-]+'[\w-]*')([^;]+)", said) or re.search(
        r'filename="?([^";]+)', said
    )
    return _plain_name(match[1]) if match else ""


def _name_in(url: str) -> str:
    path = parse_url(url).target.partition("?")[0]
    return _plain_name(path) or "download"


def _plain_name(path: str) -> str:
    """Return the last part of a path as a name: decoded, without what no file's name has."""
    name = re.split(r"[/\\]", unquote(path).rstrip("/\\"))[-1]
    return re.sub(r"[\x00-\x1f\x7f]", "", name).strip()[:200]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _words(error: Exception) -> str:
    if isinstance(error, httpx.ConnectTimeout):
        return "the server did not accept the connection in time"
    if isinstance(error, httpx.TimeoutException):
        return "the server stopped answering"
    return error.why if isinstance(error, _TryAgain) else in_words(error)


def _refusal(url: str, why: str, remedy: str) -> Failure:
    return Failure(FailureCode.SOURCE_REFUSED, f"{show_url(url)} {why}.", remedy)


def _too_large(url: str, limit: int) -> Failure:
    return _refusal(url, f"is larger than {limit // MB or 1} MB", "Offer a smaller file.")
