"""Each option has one text, below its field: the command line, the Launchpad and the documents say that one."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from pydantic import BaseModel
from typer.models import OptionInfo

from tests.gateway.conftest import House
from tunes_dagster.assets.launchpad import mirror
from tunes_dagster.assets.requests import SourceImagesConfig
from tunes_dagster.cli.flags import takes
from tunes_dagster.core.recipe import (
    DatasetOptions,
    ImportRequest,
    PromptRequest,
    RenderSettings,
    Sources,
    TrainingOptions,
    TuneRequest,
)
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.texts import text_of
from tunes_dagster.evaluation.card import CardOptions
from tunes_dagster.gateway.options import GatewayOptions

REQUESTS: tuple[type[BaseModel], ...] = (
    DatasetOptions,
    ImportRequest,
    PromptRequest,
    RenderSettings,
    Sources,
    TrainingOptions,
    TuneRequest,
)
MODELS = (*REQUESTS, CardOptions, GatewayOptions, Settings)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_option_says_what_it_means_on_its_field_and_nowhere_else(model: type[BaseModel]) -> None:
    for name in model.model_fields:
        assert text_of(model, name).endswith("."), f"{model.__name__}.{name} has no sentence below it"
        assert "None" not in text_of(model, name), f"{model.__name__}.{name} speaks Python"
    assert "Attributes:" not in (model.__doc__ or "")


def test_flags_launchpad_and_documents_say_the_text_of_the_field(house: House) -> None:
    @takes(training=TrainingOptions)
    def command(training: dict[str, Any]) -> None:
        """Nothing."""

    shown = mirror(TrainingOptions, "Mirrored")
    for name, flag in inspect.signature(command).parameters.items():
        said = text_of(TrainingOptions, name)
        (option,) = (one for one in flag.annotation.__metadata__ if isinstance(one, OptionInfo))
        assert (option.help or "").startswith(said) and said
        assert (shown.model_fields[name].description or "").startswith(said)
    for name in ("name", "token", "characteristics", "callback_url"):
        assert SourceImagesConfig.model_fields[name].description == text_of(TuneRequest, name)
    schemas = house.client.get("/openapi/native.json").json()["components"]["schemas"]
    documented = [model for model in REQUESTS if model.__name__ in schemas]
    assert documented == [PromptRequest, RenderSettings]
    for model in documented:
        for name, field in schemas[model.__name__]["properties"].items():
            assert " ".join(field["description"].split()) == text_of(model, name), (model.__name__, name)
