"""Strings of `tune.yaml` and `--set` are what was written."""

from __future__ import annotations

import copy
from io import StringIO

import pytest
from rich.console import Console

from tunes_dagster.cli.flags import assignments
from tunes_dagster.cli.output import escape
from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.intake.tune_file import parse_tune_yaml

YAML = b"""
name: no
title: 2024
token: 0123
default_caption: 1.50
labels: {order: 1234, 7: 2024-01-01, answer: yes}
captions: {4: 12:30}
training: {base_tune_id: 4, rank: 8, learning_rate: 0.0001}
dataset: {mask: off, face_crop: yes}
"""


def test_strings_of_a_file_are_what_was_written() -> None:
    request = parse_tune_yaml(YAML)
    assert (request.name, request.title, request.token, request.default_caption) == (
        "no",
        "2024",
        "0123",
        "1.50",
    )
    assert request.labels == {"order": "1234", "7": "2024-01-01", "answer": "yes"}
    assert request.captions == {"4": "12:30"} and request.training.base_tune_id == "4"
    assert (type(request.training.rank), request.training.rank) == (int, 8)
    assert request.training.learning_rate == 0.0001
    assert (request.dataset.mask, request.dataset.face_crop) == ("off", True)


def test_strings_of_assignments_are_what_was_written() -> None:
    said = assignments(
        [
            "training.base_tune_id=4",
            "title=a: b # c",
            "token=no",
            "labels.order=007",
            "name=#1 fan",
            "training.rank=8",
        ]
    )
    request = TuneRequest.model_validate(copy.deepcopy(said))
    assert (request.training.base_tune_id, request.title, request.token) == ("4", "a: b # c", "no")
    assert (request.labels, request.name, request.training.rank) == ({"order": "007"}, "#1 fan", 8)


@pytest.mark.parametrize(
    "text",
    [
        r"write \[ for the character",
        r"\[red]",
        "[bold]",
        r"C:\[x",
        r"\\[ and \\[a]",
        "a [b",
        "[",
        "\\",
        r"\[ then [i]",
    ],
)
def test_what_somebody_wrote_is_printed_as_it_is(text: str) -> None:
    out = StringIO()
    Console(file=out, width=200, highlight=False).print(f"[red]{escape(text)}[/] end")
    assert out.getvalue() == f"{text} end\n"
