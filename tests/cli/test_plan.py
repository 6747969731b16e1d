"""`tunes plan` says what fits without loading or fetching anything."""

from __future__ import annotations

import json

from tests.cli.conftest import Tunes


def test_a_plan_for_usual_devices_and_one_for_a_device(tunes: Tunes) -> None:
    said = json.loads(tunes("plan", "--base", "sdxl1", "--json").out)
    assert [one["name"] for one in said["missing"]] == ["dinov2-base", "clip-vit-large", "blip-base"]
    plans = said["devices"]
    assert [row["device"] for row in plans][1:] == [f"GPU with {gib} GiB" for gib in (12, 24, 48, 80, 140)]
    small, large = plans[1], plans[-1]
    assert small["offload"] and small["gradient_checkpointing"]
    assert not large["offload"] and large["cohort"] > small["cohort"]
    (one,) = json.loads(tunes("plan", "--base", "flux2-dev", "--memory", "24", "--json").out)["devices"]
    assert one["fits"] is False and "needs at least" in one["says"]


def test_wrong_options_are_named(tunes: Tunes) -> None:
    said = tunes("plan", "--rank", "500")
    assert said.code == 2 and "rank is '500'" in said.err


def test_a_device_without_memory_is_no_device(tunes: Tunes) -> None:
    said = tunes("plan", "--memory", "-4")
    assert said.code == 2 and "greater than or equal to 1" in said.err
