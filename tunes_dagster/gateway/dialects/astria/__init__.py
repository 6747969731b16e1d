"""Astria: https://docs.astria.ai. Bodies in JSON, multipart and urlencoded form, nested as Rails nests them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter

from tunes_dagster.gateway.desk import Desk, desk_for
from tunes_dagster.gateway.dialect import Dialect, Form
from tunes_dagster.gateway.dialects.astria import packs, people, prompts, tunes, workspaces
from tunes_dagster.gateway.dialects.astria.prompts import tune_number
from tunes_dagster.gateway.dialects.astria.wire import (
    PromptFields,
    TuneFields,
    error,
    prompt_object,
    tune_object,
)
from tunes_dagster.gateway.service import service_around
from tunes_dagster.registry import ApiObject, Prompt
from tunes_dagster.registry.outbox import Sending
from tunes_dagster.service.installation import Installation

router = APIRouter()
for part in (tunes, prompts, packs, people, workspaces):
    router.include_router(part.router)
_PATHS = (
    "/tunes",
    "/prompts",
    "/packs",
    "/p/",
    "/gallery",
    "/images",
    "/users",
    "/themes",
    "/workspaces",
    "/cli/",
)
_TUNE = Form("tune", TuneFields, ("tune[images][]",))
_PROMPT = Form("prompt", PromptFields)
DIALECT = Dialect(
    name="astria",
    title="Astria",
    router=router,
    key_prefix="sd_",
    error=error,
    paths=_PATHS,
    start=packs.seed,
    codes=(400, 401, 404, 408, 409, 415, 422, 429, 503),
    about="The API of https://docs.astria.ai: tunes, prompts, packs. Bodies may be JSON, multipart or urlencoded, "
    "nested as Rails nests them; paths also work with `.json`. What differs: docs/gateway-astria.md.",
    problem={
        "type": "object",
        "additionalProperties": {
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
        },
    },
    forms={
        "POST /tunes": _TUNE,
        "PATCH /tunes/{tune_id}": _TUNE,
        "POST /p/{pack_id}/tunes": _TUNE,
        "POST /tunes/{tune_id}/prompts": _PROMPT,
        "POST /prompts/{prompt_id}/duplicate": _PROMPT,
        "POST /packs": Form("pack", packs.PackFields),
        "POST /workspaces": Form("workspace", workspaces.WorkspaceFields),
        "PATCH /workspaces/{workspace_id}": Form("workspace", workspaces.WorkspaceFields),
        "POST /images/inspect": Form(files=("file",)),
    },
)


def callback(installation: Installation, sending: Sending) -> Sending:
    """Return a POST of `{"tune": …}` or `{"prompt": …}`; of a group of prompts an array of them."""
    if sending.event == "prompts.done":
        members = installation.registry.objects.group_members(sending.subject_id)
        return replace(sending, body=[_prompt(installation, prompt, seen) for prompt, seen in members])
    seen = installation.registry.objects.get(sending.subject_id)
    if sending.event.startswith("tune."):
        tune = installation.registry.tunes.get(sending.subject_id)
        return replace(
            sending, body={"tune": tune_object(_desk(installation, tune.account_id, seen), tune, seen)}
        )
    prompt = installation.registry.prompts.get(sending.subject_id)
    return replace(sending, body={"prompt": _prompt(installation, prompt, seen)})


def _prompt(installation: Installation, prompt: Prompt, seen: ApiObject | None) -> dict[str, Any]:
    mine = _desk(installation, prompt.account_id, seen)
    return prompt_object(mine, prompt, seen, tune_number(mine, prompt, seen))


def _desk(installation: Installation, account_id: str, seen: ApiObject | None) -> Desk:
    return desk_for(service_around(installation), account_id, seen.base_url if seen else "")
