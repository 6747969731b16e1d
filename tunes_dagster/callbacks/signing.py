"""How a callback is put on the wire: its bytes and headers, signed when the account has a secret."""

from __future__ import annotations

import json
from datetime import datetime

from tunes_dagster.registry.outbox import Sending


def wire_form(sending: Sending, now: datetime) -> tuple[bytes, dict[str, str]]:
    """Return the body and headers of one attempt.

    `webhook-id` is the same in every attempt, so that a receiver can drop repeats. The signature is that of
    Standard Webhooks 1.0.0: HMAC-SHA256 over `id.timestamp.body`, by the new and the old secret while an
    account moves from one to the other.
    """
    bare = sending.method == "GET"
    body = "" if bare else json.dumps(sending.body, ensure_ascii=False, separators=(",", ":"))
    headers = {
        **({} if bare else {"content-type": "application/json"}),
        "webhook-id": sending.callback_id,
        "webhook-timestamp": str(int(now.timestamp())),
    }
    if sending.secret:
        from standardwebhooks import Webhook

        secrets = [sending.secret, *([sending.secret_old] if sending.secret_old else [])]
        signatures = [Webhook(secret).sign(sending.callback_id, now, body) for secret in secrets]
        headers["webhook-signature"] = " ".join(signatures)
    return body.encode("utf-8"), headers
