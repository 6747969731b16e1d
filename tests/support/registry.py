"""Rows for tests that need a registry, and a clock that tests move by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tunes_dagster.core.ids import new_id
from tunes_dagster.core.recipe import PromptRequest, RenderSettings, TuneRequest
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.store import Store
from tunes_dagster.registry import Prompt, Registry, Tune
from tunes_dagster.registry.prompts import NewPrompt
from tunes_dagster.registry.tunes import NewTune
from tunes_dagster.service.installation import Installation


class Clock:
    """Stands still until told otherwise."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.moment

    def forward(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


def render_settings(**changes: object) -> RenderSettings:
    filled = {
        "seed": 1,
        "steps": 20,
        "guidance_scale": 4.0,
        "width": 128,
        "height": 128,
        "scheduler": "euler",
    }
    return RenderSettings.model_validate({**filled, **changes})


def prompt_request(text: str = "a photo of ohwx dog", **changes: object) -> PromptRequest:
    callback = changes.pop("callback_url", None)
    return PromptRequest(text=text, settings=render_settings(**changes), callback_url=callback)


def add_tune(registry: Registry, **changes: object) -> Tune:
    """Add a tune with a callback address unless told otherwise."""
    options = {
        k: changes.pop(k)
        for k in ("base_id", "origin", "status", "account_id", "tags", "price")
        if k in changes
    }
    tune_id = changes.pop("id", None) or new_id("tune")
    request = TuneRequest.model_validate(
        {"name": "dog", "callback_url": "http://caller.test/hook", **changes}
    )
    options = {"base_id": "tiny-sdxl", "origin": "cli", **options}
    if tags := options.pop("tags", None):
        asked = zip(request.prompts, tags, strict=True)
        options["prompts"] = [
            NewPrompt(request=one, base_id=str(options["base_id"]), tags=some) for one, some in asked
        ]
    new = NewTune(request=request, id=tune_id, recipe={"seed": 0}, **options)
    return registry.tunes.accept(new).tune


def add_prompt(
    registry: Registry,
    request: PromptRequest,
    *,
    account_id: str = "local",
    origin: str = "cli",
    base_id: str = "tiny-sdxl",
    **of_it: Any,
) -> Prompt:
    """Add a prompt; `of_it` are fields of `NewPrompt`."""
    new = NewPrompt(request=request, base_id=base_id, **of_it)
    return registry.prompts.accept([new], account_id=account_id, origin=origin).prompts[0]


def run_stage(registry: Registry, kind: str, subject_id: str, run_id: str = "run", **finish: object) -> None:
    """Claim and finish one piece of work."""
    work = registry.work.claim(kind, subject_id, run_id)
    registry.work.finish(work.id, run_id, **finish)


def make_ready(registry: Registry, tune: Tune) -> Tune:
    for kind in ("prepare", "train", "finish"):
        run_stage(registry, kind, tune.id)
    return registry.tunes.get(tune.id)


def around(registry: Registry, store: Store | None = None) -> Installation:
    """Return an installation with a registry, and perhaps a store, that is open already."""
    return Installation(Settings(), registry=registry, store=store)
