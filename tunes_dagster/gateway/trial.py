"""Tries a callback address before anything is trained, through the same guard as the real callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx

from tunes_dagster.callbacks.deliver import request_target
from tunes_dagster.core.failures import Failure
from tunes_dagster.intake.guard import Guard, guarded_client, show_url

_SECONDS = 5.0


def try_callback(url: str, allow_hosts: Sequence[str]) -> dict[str, Any]:
    """Send one HEAD request, which changes nothing at the receiver, and judge the answer in words."""
    shown = show_url(url)
    try:
        with guarded_client(Guard(allow_hosts), timeout=_SECONDS) as client:
            answer = client.head(url, extensions={"target": request_target(url)})
    except Failure as failure:
        return {"url": shown, "ok": False, "verdict": failure.message}
    except httpx.HTTPError as error:
        return {"url": shown, "ok": False, "verdict": f"It could not be reached: {type(error).__name__}."}
    code = answer.status_code
    if 300 <= code < 400:
        return {"url": shown, "ok": False, "verdict": f"It redirects ({code}); redirects are not followed."}
    if code in (401, 403):
        return {
            "url": shown,
            "ok": False,
            "verdict": f"It answers {code}: something refuses us before your code does.",
        }
    if code >= 500:
        return {"url": shown, "ok": False, "verdict": f"It answers {code}."}
    return {"url": shown, "ok": True, "verdict": f"It answers {code}."}
