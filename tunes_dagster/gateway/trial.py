"""Tries a callback address before anything is trained, through the same guard as the real callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx

from tunes_dagster.core.failures import Failure
from tunes_dagster.core.urls import parse_url, show_url
from tunes_dagster.intake.guard import Guard, guarded_client
from tunes_dagster.intake.streams import Deadline, DeadlinePassed

_SECONDS = 5.0


def try_callback(url: str, allow_hosts: Sequence[str]) -> dict[str, Any]:
    """Send one HEAD request, which changes nothing at the receiver, and judge the answer in words."""
    shown = show_url(url)
    try:
        where = parse_url(url).request()
        with Deadline(_SECONDS), guarded_client(Guard(allow_hosts), timeout=_SECONDS) as client:
            answer = client.head(**where)
    except Failure as failure:
        return {"url": shown, "ok": False, "verdict": failure.message}
    except (httpx.HTTPError, DeadlinePassed) as error:
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
