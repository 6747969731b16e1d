"""How far work is: one number that never goes back, the same in every API and at the command line.

Each API makes a tune and a prompt of its own; what moves them is played by hand, with a process lost on the way.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.gateway import test_astria, test_pixazo, test_pixelapi, test_pixu
from tests.gateway.conftest import House
from tunes_dagster.cli import main
from tunes_dagster.cli.watching import Watch
from tunes_dagster.registry import Prompt, Tune

Look = Callable[[], float]
# Kind of work → what it reports: phase, step and steps.
REPORTS = {
    "prepare": [("fetching", 0, None), ("checking", 2, 5), ("captioning", 5, 5)],
    "train": [("loading", 0, None), ("encoding", 3, 5), ("training", 100, 1000), ("training", 900, 1000)],
    "finish": [("evaluating", 1, 4), ("evaluating", 4, 4), ("packaging", 0, None)],
    "render": [("loading", 0, None), ("rendering", 1, 4), ("rendering", 3, 4)],
}


def got(house: House, path: str) -> dict:
    answer = house.client.get(path, headers=house.auth())
    assert answer.status_code == 200, answer.text
    return answer.json()


def posted(house: House, path: str, **body: object) -> dict:
    answer = house.client.post(path, json=body, headers=house.auth())
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


def newest(house: House) -> Tune:
    return house.registry.tunes.rows(account_id="ann")[0]


def asked(house: House) -> Prompt:
    return house.registry.prompts.rows(account_id="ann")[0]


def astria_tune(house: House) -> tuple[Tune, list[Look]]:
    number = test_astria.create(house)["id"]
    return newest(house), [
        lambda: got(house, f"/tunes/{number}")["progress"],
        lambda: got(house, "/tunes")[0]["progress"],
    ]


def pixelapi_tune(house: House) -> tuple[Tune, list[Look]]:
    opened = test_pixelapi.train(house)
    files = [("images", (f"{n}.png", b"\x89PNG" + bytes([n] * 50), "image/png")) for n in range(5)]
    assert house.client.post(opened["upload_url"], files=files).status_code == 200
    return newest(house), [lambda: got(house, f"/v1/tunes/{opened['job_id']}")["progress"]]


def pixazo_tune(house: House) -> tuple[Tune, list[Look]]:
    uid, headers = test_pixazo.submit(house).json()["request_id"], test_pixazo.headers(house)

    def result() -> float:
        path = f"{test_pixazo.PATH}-result"
        return house.client.post(path, json={"request_id": uid}, headers=headers).json()["progress"]

    def polled() -> float:
        return house.client.get(f"/v2/requests/status/{uid}", headers=headers).json()["progress"]

    return newest(house), [result, polled]


def pixu_tune(house: House) -> tuple[Tune, list[Look]]:
    """Pixu has no call that asks after a model: the native one takes its id."""
    uid = test_pixu.create(house)
    return newest(house), [lambda: got(house, f"/native/v1/tunes/{uid}")["progress"]]


def native_tune(house: House) -> tuple[Tune, list[Look]]:
    house.client.post("/tunes", json={"tune": test_astria.TUNE}, headers=house.auth())
    tune = newest(house)
    return tune, [lambda: got(house, f"/native/v1/tunes/{tune.id}/timeline")["progress"]]


def astria_prompt(house: House, tune: Tune) -> list[Look]:
    number = posted(house, f"/tunes/{tune.number}/prompts", prompt={"text": "ohwx woman"})["id"]
    return [
        lambda: got(house, f"/tunes/{tune.number}/prompts/{number}")["progress"],
        lambda: got(house, "/prompts")[0]["progress"],
    ]


def pixelapi_prompt(house: House, tune: Tune) -> list[Look]:
    job = posted(house, "/v1/tunes/infer", tune_id=tune.id, prompt="a photo of ohwx")["job_id"]
    return [lambda: got(house, f"/v1/tunes/{job}")["progress"]]


def pixelapi_picture(house: House, tune: Tune) -> list[Look]:
    made = posted(house, "/v1/image/generate", prompt="a cat")["generation_id"]
    return [lambda: got(house, f"/v1/image/{made}")["progress"]]


def pixu_prompt(house: House, tune: Tune) -> list[Look]:
    """A face of its own choosing: no model needs to be there."""
    body = {"positive": "smiling", "resolution": "512,768"}
    uid = test_pixu.call(house, "txt2img_strict_portrait", **body).json()["response"]
    return [
        lambda: test_pixu.call(house, "txt2img_results", request_uid=uid).json()["response"]["progress"],
        lambda: got(house, f"/native/v1/prompts/{uid}/timeline")["progress"],
    ]


def said_by(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    capsys.readouterr()
    assert main([*command, "--account", "ann"]) == 0, command
    return capsys.readouterr().out


def moved(house: House, kind: str, subject_id: str, look: Callable[[], None], runs: list[str]) -> None:
    """Play one kind of work: all but its last run are lost in the middle."""
    for run in runs:
        work = house.registry.work.claim(kind, subject_id, run)
        for phase, step, total in REPORTS[kind]:
            house.registry.work.progress(work.id, run, phase=phase, step=step, total=total)
            look()
        if run != runs[-1]:
            house.registry.work.requeue_lost(work.id, "Its process is gone.")
            look()
    if kind == "render":
        for prompt in house.registry.prompts.rows(batch_id=subject_id):
            key = house.store.write_bytes(f"batches/{subject_id}/1/{prompt.id}.png", b"\x89PNG")
            house.registry.prompts.done(prompt.id, work.id, run, [key])
    house.registry.work.finish(work.id, run, result={"steps": 1000} if kind == "train" else None)
    look()


@pytest.mark.parametrize("make", [native_tune, astria_tune, pixelapi_tune, pixazo_tune, pixu_tune])
def test_a_tune_shows_one_number_everywhere_that_never_goes_back(
    house: House,
    make: Callable[[House], tuple[Tune, list[Look]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tune, looks = make(house)
    looks.append(lambda: got(house, f"/native/v1/tunes/{tune.id}")["progress"])
    seen: list[float] = []

    def look() -> None:
        number = round(house.registry.tunes.get(tune.id).progress, 1)
        assert {one() for one in looks} == {number}
        (line,) = Watch(house.registry, [tune.id]).lines()
        assert round(line.percent, 1) == number
        assert line.over or not number or f"{number:.0f} %" in line.text()
        seen.append(number)

    for kind in ("prepare", "train", "finish"):
        moved(house, kind, tune.id, look, ["lost", "whole"] if kind == "train" else ["whole"])
        shown = json.loads(said_by(capsys, "status", str(tune.number), "--json"))["progress"]
        assert shown == seen[-1]
    assert seen == sorted(seen) and seen[-1] == 100 and len(set(seen)) > 8, seen


@pytest.mark.parametrize("make", [astria_prompt, pixelapi_prompt, pixelapi_picture, pixu_prompt])
def test_a_prompt_shows_one_number_everywhere_that_never_goes_back(
    house: House, make: Callable[[House, Tune], list[Look]], capsys: pytest.CaptureFixture[str]
) -> None:
    test_astria.create(house)
    tune = house.finish_tune(newest(house))
    looks = make(house, tune)
    prompt = asked(house)
    looks.append(lambda: got(house, f"/native/v1/prompts/{prompt.id}/timeline")["progress"])
    seen: list[float] = []

    def look() -> None:
        numbers = {one() for one in looks}
        (line,) = Watch(house.registry, prompts=[prompt.id]).lines()
        assert len(numbers) == 1 and (line.over or round(line.percent, 1) in numbers), (numbers, line)
        seen.extend(numbers)

    look()
    (batch,) = house.registry.groups.make_batches(wait_seconds=0)
    moved(house, "render", batch.id, look, ["lost", "whole"])
    (shown,) = json.loads(said_by(capsys, "list", "--prompts", "--json"))
    assert shown["progress"] == seen[-1]
    assert seen == sorted(seen) and seen[0] == 0 and seen[-1] == 100 and len(set(seen)) > 3, seen


def test_the_command_line_says_of_prompts_at_work_how_far_they_are(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    astria_prompt(house, house.finish_tune(astria_tune(house)[0]))
    (batch,) = house.registry.groups.make_batches(wait_seconds=0)
    work = house.registry.work.claim("render", batch.id, "run")
    house.registry.work.progress(work.id, "run", phase="rendering", step=3, total=4)
    far = house.registry.groups.progress_of([asked(house)])[asked(house).id]
    for command in (("status",), ("list", "--prompts")):
        assert f" {far:.0f} % " in said_by(capsys, *command), command
