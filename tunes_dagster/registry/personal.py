"""The one list of every place that holds a person's pictures, words or measurements.

Deletion, retention and `tunes forget` go by it, and so does the test that searches an installation afterwards. A column
of text that is neither in `WORDS` nor in `PLAIN` fails a test: whoever adds one says here what becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from tunes_dagster.core.failures import FailureCode
from tunes_dagster.registry.api_tables import (
    ApiGroup,
    ApiKey,
    ApiObject,
    IdempotencyKey,
    LedgerEntry,
    LedgerPosting,
    Pack,
    Reservation,
    Wallet,
    Workspace,
)
from tunes_dagster.registry.campaign_tables import Campaign, CampaignDate, CampaignPrompt
from tunes_dagster.registry.deletion_tables import Blob, BlobUse, Deletion
from tunes_dagster.registry.session_tables import DeviceRun, DeviceRunLine, DeviceSession
from tunes_dagster.registry.tables import (
    Account,
    Batch,
    Callback,
    Cohort,
    Delivery,
    Drop,
    Event,
    Prompt,
    Restore,
    Secret,
    Table,
    Tune,
    Work,
)
from tunes_dagster.registry.uses import PromptTune

# In the store: where → what lies there, and by what deletion finds it.
FILES = {
    "tunes/<id>/": "sources, uploads, training set, captions, weights, checkpoints, samples, face embeddings, report "
    "card with its measurements: by the tune's id",
    "blobs/": "pictures, crops, masks, input pictures of prompts: by `blob_uses`",
    "uploads/": "what a command or a request handed in: by `blob_uses`",
    "batches/<id>/": "renders by the prompt's id in their names; sheets and pages with every render that they show",
    "campaigns/<name>/": "plans and reports that show or name it: by its prompts; its own files stay its owner's",
    "cache/": "latents, captions and embeddings: by the digests that the tune's manifests give",
}
# Beginnings of the names of temporary folders that a killed process leaves.
TEMPORARY = ("tunes-intake-", "tunes-store-", "tunes-inspect-", "tunes-captions-", "tunes-base-")
# Of Dagster's storage nothing: its events, tags, keys and logs name ids, numbers and addresses. Homes of earlier
# versions hold thumbnails and texts there, which `tunes forget --dagster-history` deletes with their runs.


def _asked(asked: Mapping[str, Any] | None) -> dict[str, Any]:
    kept = ("deleted", "price", "request_id", "own_tune")
    return {name: value for name, value in (asked or {}).items() if name in kept}


def _numbers(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Keep what the books and the lists count by."""
    plain = {name: value for name, value in (settings or {}).items() if isinstance(value, int | float)}
    scheduler = (settings or {}).get("scheduler")
    return {**plain, **({"scheduler": scheduler} if scheduler else {})}


def _kind(recipe: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"training": {"kind": ((recipe or {}).get("training") or {}).get("kind", "lora")}}


def _told(body: Mapping[str, Any] | None) -> dict[str, Any]:
    """Keep of a callback whom and what it tells."""
    body = body or {}
    data = body.get("data") or {}
    kept = ("id", "number", "tune_id", "status", "created_at", "done_at", "ready_at", "group")
    return {
        **{name: body[name] for name in ("type", "timestamp") if name in body},
        "data": {name: data[name] for name in kept if name in data},
    }


def receiver(url: str | None) -> str:
    """Return of an address who is told: paths and queries hold whatever a caller wrote into them."""
    try:
        parts = urlsplit(url or "")
        return f"{parts.scheme}://{parts.hostname}/" if parts.hostname else ""
    except ValueError:
        return ""


def _own_word(code: str | None, message: str | None) -> str | None:
    """Keep why it was cancelled, which is our sentence; other failures quote names and texts."""
    return message if code == FailureCode.CANCELLED else None


_FAILURE: dict[str, Any] = {
    "failure_message": lambda row: _own_word(row.failure_code, row.failure_message),
    "failure_detail": None,
    "failure_remedy": None,
}

# Columns with words or measurements → what is left in them: a value, or what makes it of the row.
WORDS: dict[type[Table], dict[str, Any]] = {
    Tune: {
        "title": "",
        "class_name": "",
        "token": "",
        "message": "",
        "request": dict,
        "recipe": lambda row: _kind(row.recipe),
        "result": dict,
        "warnings": list,
        "labels": dict,
        "callback_url": None,
        **_FAILURE,
    },
    Prompt: {
        "text": "",
        "settings": lambda row: _numbers(row.settings),
        "images": list,
        "result": dict,
        "warnings": list,
        "callback_url": None,
        **_FAILURE,
    },
    PromptTune: {"word": ""},
    Batch: {"message": ""},
    Work: {"failure_message": None, "failure_detail": None},
    DeviceRun: {"changes": dict},
    DeviceRunLine: {"text": ""},
    Event: {"message": "", "data": dict},
    ApiObject: {"asked": lambda row: _asked(row.asked), "sameness": None, "upload_hash": None},
    ApiGroup: {"callback_url": lambda row: receiver(row.callback_url)},
    Callback: {
        "body": lambda row: _told(row.body),
        # What is still to be told is told; then who was told is left.
        "url": lambda row: row.url if row.state in ("pending", "held") else receiver(row.url),
    },
    Delivery: {
        "error": lambda row: row.error and "It was deleted with what it told of.",
        "response_head": None,
    },
    IdempotencyKey: {"body": dict, "answer": None, "status_code": None},
    CampaignDate: {"message": "", "plan": ...},
    CampaignPrompt: {"variables": dict},
    Drop: {"message": ""},
    Deletion: {"label": ""},
}
# `...`: only a part of it is about the subject; `forgetting.py` knows which.

_OF_THE_ACCOUNT = "its account's, and not a subject's"
# Columns of text that hold nothing of a subject: ids and closed lists of ours where no reason is given.
# A new column of ids, numbers or a closed list goes here with "".
PLAIN: dict[type[Table], dict[str, str]] = {
    Account: dict.fromkeys(
        ("id", "name", "callback_secret", "callback_secret_old", "callback_unknown", "expiry_callback_url"),
        _OF_THE_ACCOUNT,
    ),
    ApiGroup: dict.fromkeys(("id", "account_id", "dialect"), ""),
    ApiKey: dict.fromkeys(("id", "account_id", "hash", "hint", "name"), _OF_THE_ACCOUNT),
    ApiObject: dict.fromkeys(
        ("id", "account_id", "dialect", "public_id", "events", "on_unknown", "base_url", "group_id"), ""
    ),
    Batch: {
        **dict.fromkeys(("id", "branch", "shape", "status", "phase"), ""),
        "result": "numbers of the machine",
    },
    Blob: {"key": "a hash, or an id of ours; gone with its last use"},
    BlobUse: {"key": "the same", "subject_id": ""},
    Callback: dict.fromkeys(
        ("id", "account_id", "event", "subject_id", "form", "on_unknown", "state", "lease_id"), ""
    ),
    CampaignDate: {
        **dict.fromkeys(("id", "campaign_id", "date", "version", "status", "plan_key", "report_key"), ""),
        "result": "numbers of the report",
    },
    CampaignPrompt: dict.fromkeys(("date_id", "campaign_id", "prompt_id", "recipe_hash"), ""),
    Campaign: dict.fromkeys(
        (
            "id",
            "name",
            "account_id",
            "cron",
            "timezone",
            "starts",
            "file",
            "version",
            "definition",
            "state",
            "problems",
        ),
        "the campaign's own file, which is its owner's to correct",
    ),
    Cohort: dict.fromkeys(("id", "branch"), ""),
    Deletion: {
        **dict.fromkeys(("id", "account_id", "kind", "subject_id", "reason", "state", "step"), ""),
        "rule": "our sentence",
        "traces": "digests and ids; empty when done",
        "what": "numbers and our sentences",
    },
    Delivery: dict.fromkeys(("id", "callback_id"), ""),
    DeviceRun: {
        **dict.fromkeys(("id", "work_id", "kind", "subject_id", "session_id", "run_id", "leader_id"), ""),
        **dict.fromkeys(("state", "failure_code", "told", "teller"), ""),
        "facts": "ids, numbers and addresses",
    },
    DeviceRunLine: dict.fromkeys(("device_run_id",), ""),
    DeviceSession: dict.fromkeys(("id", "host", "device", "run_id", "doing", "bases"), ""),
    Drop: {
        **dict.fromkeys(("fingerprint", "state", "tune_id"), ""),
        "path": "of a folder that its owner put there and has to take away",
    },
    Event: dict.fromkeys(("subject_id", "phase"), ""),
    IdempotencyKey: {
        **dict.fromkeys(("account_id", "body_hash", "claim", "subjects"), ""),
        "key": "its caller's, gone after a day",
    },
    LedgerEntry: {**dict.fromkeys(("account_id", "kind", "subject_id"), ""), "memo": "ids and numbers"},
    LedgerPosting: {"book": ""},
    Pack: dict.fromkeys(("slug", "account_id", "title", "fields", "prompts"), _OF_THE_ACCOUNT),
    Prompt: dict.fromkeys(
        (
            "id",
            "account_id",
            "tune_id",
            "base",
            "branch",
            "shape",
            "status",
            "batch_id",
            "failure_code",
            "cancel",
            "origin",
        ),
        "",
    ),
    PromptTune: dict.fromkeys(("prompt_id", "tune_id", "kind"), ""),
    Secret: dict.fromkeys(("name", "value"), "ours"),
    Reservation: dict.fromkeys(("subject_id", "account_id", "month", "state"), ""),
    Restore: {"id": ""},
    Tune: dict.fromkeys(
        (
            "id",
            "account_id",
            "base",
            "branch",
            "status",
            "phase",
            "recipe_hash",
            "failure_code",
            "cancel",
            "origin",
        ),
        "",
    ),
    Wallet: dict.fromkeys(("account_id", "plan", "email", "grant_month", "options"), _OF_THE_ACCOUNT),
    Work: dict.fromkeys(
        ("id", "kind", "subject_id", "state", "run_key", "run_id", "origin", "cohort_id", "failure_code"), ""
    ),
    Workspace: dict.fromkeys(("slug", "account_id", "title", "fields"), _OF_THE_ACCOUNT),
}


def scrub(row: Table) -> None:
    """Take out of a row, which is locked, everything that a person wrote or that was measured of them."""
    left: Callable[..., Any] | Any
    for name, left in WORDS[type(row)].items():
        if left is ...:
            continue
        value = left() if left in (dict, list) else left(row) if callable(left) else left
        if getattr(row, name) != value:
            setattr(row, name, value)
