"""Wrong requests are answered with the option's name, what was given and what it takes."""

from __future__ import annotations

import pytest

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.core.validation import checked


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "name is missing"),
        ({"name": "cat", "training": {"rnk": 4}}, "training.rnk is not an option (did you mean rank?)"),
        (
            {"name": "cat", "training": {"rank": 500}},
            "training.rank is '500', but should be less than or equal to 128",
        ),
        (
            {"name": "cat", "training": {"steps": "many"}},
            "training.steps is 'many', but should be a whole number",
        ),
        ({"name": "cat", "token": "two words"}, "token is 'two words', but should be one word of at most 40"),
        ({"name": "cat", "prompts": [{"text": "x", "setings": {}}]}, "prompts.0.setings is not an option"),
        (
            {"name": "cat", "characteristics": {"-": "x"}},
            "characteristics.-.[key] is '-', but should be at most 40 letters",
        ),
        (
            {"name": "cat", "training": 3},
            "training is '3', but should be names with values (as in `rank: 8`)",
        ),
        ({"name": "cat", "training": {"steps": "9" * 5000}}, "but should be a whole number of fewer digits"),
        ({"name": "cat", "dataset": {"face_crop": [1]}}, "dataset.face_crop should be true or false"),
        ({"name": "cat", "prompts": "x"}, "prompts is 'x', but should be a list"),
        ({"name": 3}, "name is '3', but should be text"),
        (["cat"], "the whole should be names with values"),
    ],
)
def test_problems_are_named(data: object, said: str) -> None:
    with pytest.raises(Failure) as caught:
        checked(TuneRequest, data, "tune.yaml")
    assert caught.value.code is FailureCode.INVALID_REQUEST
    assert said in caught.value.message
    assert caught.value.message.startswith("tune.yaml is not valid: ")


def test_a_good_request_comes_back_as_the_model() -> None:
    request = checked(TuneRequest, {"name": "cat", "training": {"rank": 8}})
    assert (request.title, request.training.rank) == ("cat", 8)
