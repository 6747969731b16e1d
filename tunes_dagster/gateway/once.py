"""`Idempotency-Key`: a repeated request gets the first one's answer, also when the server died before it gave one.

A key's row is claimed before the endpoint runs, names what was made from the transaction on that made it, and keeps
the answer. A repeat that finds something made but no answer runs the endpoint on what is there: its desk accepts
nothing new.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from tunes_dagster.gateway.bodies import Body
from tunes_dagster.gateway.desk import Desk
from tunes_dagster.gateway.problems import HttpProblem
from tunes_dagster.gateway.uploads import read_form
from tunes_dagster.registry.accepting import Claim
from tunes_dagster.registry.api_tables import IdempotencyKey

# How long a repeated request waits for the first one's answer.
_WAIT_SECONDS = 20.0
_LONG = 200
_REPLAYED = {"Idempotent-Replayed": "true"}

Endpoint = Callable[[Request], Awaitable[Response]]


async def answered_once(request: Body, inner: Endpoint) -> Response:
    """Answer, or repeat the answer that the same `Idempotency-Key` got before."""
    key = request.headers.get("idempotency-key", "").strip()
    mine: Desk | None = getattr(request.state, "desk", None)
    if not key or mine is None or request.method in ("GET", "HEAD", "OPTIONS"):
        return await inner(request)
    if len(key) > 255:
        raise HttpProblem(400, "Idempotency-Key is longer than 255 characters", code="invalid")
    digest, fields = await _fingerprint(request)
    claim, first = await _claimed(mine, key, digest, fields)
    if first is None:
        request.state.claim = Claim(key, claim)
        return await _answered(request, inner, mine, Claim(key, claim))
    if first.status_code is not None:
        return Response(first.answer or "", first.status_code, _REPLAYED, media_type="application/json")
    request.state.made = first.subjects
    response = await _answered(request, inner, mine, Claim(key, first.claim))
    response.headers.update(_REPLAYED)
    return response


async def _claimed(
    mine: Desk, key: str, digest: str, fields: dict[str, Any]
) -> tuple[str, IdempotencyKey | None]:
    """Claim a key, or return the row of the first request once it was answered or has made something.

    Raises:
        HttpProblem: 409 for a key of another request, and when the first one takes too long.
    """
    deadline = asyncio.get_running_loop().time() + _WAIT_SECONDS
    while True:
        claim, first = await run_in_threadpool(
            mine.registry.idempotency.begin, mine.account_id, key, digest, fields
        )
        if claim:
            return claim, None
        if first is not None and first.body_hash != digest:
            raise HttpProblem(409, _difference(first.body, fields), code="idempotency_conflict")
        if first is not None and (first.status_code is not None or first.subjects):
            return "", first
        if asyncio.get_running_loop().time() > deadline:
            said = "The first request with this Idempotency-Key is still being answered"
            raise HttpProblem(409, said, headers={"Retry-After": "5"}, code="idempotency_busy")
        await asyncio.sleep(0.1)


async def _answered(request: Body, inner: Endpoint, mine: Desk, claim: Claim) -> Response:
    """Let the endpoint answer, and keep the answer; a refusal gives the key free again unless something was made."""
    end = mine.registry.idempotency.end
    try:
        response = await inner(request)
    except BaseException:
        await run_in_threadpool(end, mine.account_id, claim.key, claim.token, None)
        raise
    kept = response.status_code if response.status_code < 300 else None
    body = bytes(getattr(response, "body", b"") or b"").decode("utf-8")
    await run_in_threadpool(end, mine.account_id, claim.key, claim.token, kept, body)
    return response


async def _fingerprint(request: Body) -> tuple[str, dict[str, Any]]:
    """Return a hash of the request and its fields, long values and files by their hash."""
    fields: dict[str, Any] = {"request": f"{request.method} {request.url.path}"}
    if request.headers.get("content-type", "").startswith("multipart/"):
        for number, (name, value) in enumerate((await read_form(request)).multi_items()):
            fields[f"{name}#{number}"] = await _file_hash(value) if isinstance(value, UploadFile) else value
    else:
        raw = await request.body()
        try:
            parsed = json.loads(raw) if raw else {}
        except ValueError:
            parsed = raw.decode("utf-8", "replace")
        _flatten(parsed, "", fields)
    if request.url.query:
        fields["query"] = request.url.query
    fields.pop("api_key", None)  # some APIs carry it in the body; it is not kept
    short = {name: _short(value) for name, value in fields.items()}
    text = json.dumps(short, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest(), dict(list(short.items())[:200])


def _flatten(value: Any, name: str, into: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for part, inner in value.items():
            _flatten(inner, f"{name}.{part}" if name else str(part), into)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _flatten(inner, f"{name}[{number}]", into)
    else:
        into[name or "body"] = value


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _LONG:
        return "sha256:" + hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
    return value


async def _file_hash(file: UploadFile) -> str:
    def digest() -> str:
        found = hashlib.sha256()
        while chunk := file.file.read(1 << 20):
            found.update(chunk)
        file.file.seek(0)
        return f"{file.filename} sha256:{found.hexdigest()}"

    return await run_in_threadpool(digest)


def _difference(first: dict[str, Any], now: dict[str, Any]) -> str:
    names = [name for name in {**first, **now} if first.get(name) != now.get(name)]
    shown = "; ".join(f"{name} was {first.get(name)!r}, is {now.get(name)!r}" for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"This Idempotency-Key was used with another request: {shown}{more}"
