"""A tune from accepted to ready, and what follows from each step."""

from __future__ import annotations

import pytest

from tests.support.registry import Clock, add_tune, make_ready, prompt_request, run_stage
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.results import TuneResult
from tunes_dagster.registry import Registry, Use


def test_a_tune_goes_from_queued_to_ready(registry: Registry) -> None:
    tune = add_tune(registry, title="Rex", prompts=[prompt_request()])
    assert registry.get_tune(tune.id).status == "queued"
    seen = []
    for kind in ("prepare", "train", "finish"):
        (queued,) = registry.queued_work(kind)
        (submitted,) = registry.submit([queued.id])
        assert submitted.run_key == f"{queued.id}:1" and submitted.attempt == 1
        work = registry.claim(kind, tune.id, f"run-{kind}", run_key=submitted.run_key)
        seen.append(registry.get_tune(tune.id).status)
        assert registry.heartbeat(work.id, f"run-{kind}") == ""
        registry.progress(
            work.id, f"run-{kind}", phase="training", message="m", step=3, total=9, seconds_left=6.0
        )
        assert registry.get_tune(tune.id).step == 3
        left = {
            "prepare": TuneResult(captions=1),
            "train": TuneResult(steps=2),
            "finish": TuneResult(stopped=True),
        }
        registry.finish(work.id, f"run-{kind}", result=left[kind])
        seen.append(registry.get_tune(tune.id).status)
    assert seen == ["preparing", "prepared", "training", "trained", "finishing", "ready"]
    done = registry.get_tune(tune.id)
    assert done.result == {"captions": 1, "steps": 2, "stopped": True, "version": 1}
    assert done.ready_at is not None and done.phase == ""
    (prompt,) = registry.list_prompts(tune_id=tune.id)
    assert prompt.status == "queued" and prompt.queued_at == done.ready_at
    (callback,) = registry.list_callbacks()
    assert callback.event == "tune.ready" and callback.body["data"]["id"] == tune.id
    phases = [event.phase for event in registry.events(tune.id)]
    assert phases[0] == "queued" and phases[-1] == "ready" and phases.count("training") == 3


def test_found_by_id_number_and_newest_title(registry: Registry) -> None:
    first, second = add_tune(registry, title="Rex"), add_tune(registry, title="Rex")
    assert (first.number, second.number) == (1, 2)
    titled_like_a_number = add_tune(registry, title="1")

    def meant(word: str | int, **more: bool) -> str:
        return registry.tune_named("local", word, **more).id

    assert meant(1) == meant(" 1 ") == first.id and meant("2") == meant(second.id) == second.id
    assert meant("3") == titled_like_a_number.id and meant("Rex") == second.id
    registry.delete_tune(second.id)
    assert meant("Rex") == first.id and meant("2", deleted=True) == second.id
    for word in ("Fifi", "2", second.id):
        with pytest.raises(Failure) as error:
            meant(word)
        assert error.value.code == FailureCode.UNKNOWN_TUNE
    registry.delete_tune(first.id)
    assert meant("1") == titled_like_a_number.id, "no live tune has that number any more"
    for word in ("1", "Rex"):
        with pytest.raises(Failure):
            registry.get_tune(word)


def test_words_mean_nothing_in_another_account(registry: Registry) -> None:
    registry.add_account("ann"), registry.add_account("ben")
    hers = add_tune(registry, account_id="ann", title="style")
    his = add_tune(registry, account_id="ben", title="style")
    newest = add_tune(registry, account_id="ann", title="style")
    also_his = add_tune(registry, account_id="ben", title=str(hers.number))
    assert registry.tune_named("ben", "style").id == his.id
    assert registry.tune_named("ann", "style").id == newest.id
    assert registry.tune_named("ben", hers.number).id == also_his.id
    said = set()
    for word in (hers.id, newest.id, newest.number, "nobody"):
        with pytest.raises(Failure) as error:
            registry.tune_named("ben", word)
        said.add(str(error.value).replace(str(word), "WORD"))
    assert len(said) == 1, "somebody else's tune answers like none"
    with pytest.raises(Failure):
        registry.add_prompt(prompt_request(), branch="tiny-sdxl", account_id="ben", tune_id=hers.id)
    with pytest.raises(Failure):
        tags = [Use(hers.id, "lora", "style", 1.0)]
        registry.add_prompt(prompt_request(), branch="tiny-sdxl", account_id="ben", tags=tags)
    assert registry.list_prompts() == []


def test_lists_page_by_number(registry: Registry) -> None:
    tunes = [add_tune(registry) for _ in range(5)]
    page = registry.list_tunes(limit=2)
    assert [tune.number for tune in page] == [5, 4]
    assert [tune.number for tune in registry.list_tunes(limit=2, before=page[-1].number)] == [3, 2]
    registry.delete_tune(tunes[4].id)
    assert [tune.number for tune in registry.list_tunes(limit=1)] == [4]
    assert [tune.number for tune in registry.list_tunes("deleted")] == [5]
    assert registry.count_tunes() == {"queued": 4, "deleted": 1}


def test_the_same_id_twice_is_refused(registry: Registry) -> None:
    tune = add_tune(registry)
    with pytest.raises(Failure) as error:
        add_tune(registry, id=tune.id)
    assert error.value.code == FailureCode.CONFLICT


def test_awaiting_images_has_no_work_until_released(registry: Registry) -> None:
    tune = add_tune(registry, status="awaiting_images")
    assert registry.queued_work("prepare") == []
    registry.release_tune(tune.id)
    assert [work.subject_id for work in registry.queued_work("prepare")] == [tune.id]


def test_a_person_in_the_ui_redoes_a_ready_tune_quietly(registry: Registry, clock: Clock) -> None:
    tune = make_ready(registry, add_tune(registry))
    owed = len(registry.list_callbacks())
    work = registry.claim("train", tune.id, "ui-run")
    assert (work.origin, work.attempt, work.tries) == ("ui", 2, 1)
    registry.set_recipe(work.id, "ui-run", {"seed": 7})
    registry.finish(work.id, "ui-run", result={"weights_key": "new"})
    after = registry.get_tune(tune.id)
    assert after.status == "ready" and after.result["weights_key"] == "new" and after.recipe == {"seed": 7}
    assert len(registry.list_callbacks()) == owed and registry.queued_work("finish") == []


def test_a_failed_ui_attempt_leaves_a_ready_tune_ready(registry: Registry) -> None:
    tune = make_ready(registry, add_tune(registry))
    work = registry.claim("train", tune.id, "ui-run")
    registry.fail(work.id, "ui-run", RuntimeError("boom"))
    assert registry.get_tune(tune.id).status == "ready"
    assert registry.get_work(work.id).state == "failed"


def test_prompts_of_a_failed_tune_fail_with_it(registry: Registry) -> None:
    tune = add_tune(registry, prompts=[prompt_request(callback_url="http://caller.test/p")])
    work = registry.claim("prepare", tune.id, "run")
    registry.fail(work.id, "run", Failure(FailureCode.TOO_FEW_PICTURES, "Only one.", "Send more."))
    (prompt,) = registry.list_prompts(tune_id=tune.id)
    assert prompt.status == "failed" and prompt.failure_code == "too_few_pictures"
    assert {c.event for c in registry.list_callbacks()} == {"tune.failed", "prompt.failed"}
    with pytest.raises(Failure) as error:
        registry.add_prompt(prompt_request(), branch="tiny-sdxl", tune_id=tune.id)
    assert error.value.code == FailureCode.CONFLICT


def test_prompts_for_a_ready_tune_are_queued_at_once(registry: Registry) -> None:
    tune = make_ready(registry, add_tune(registry))
    prompt = registry.add_prompt(prompt_request(), branch="tiny-sdxl", tune_id=tune.id)
    assert prompt.status == "queued" and prompt.base == tune.base
    assert registry.get_prompt(prompt.id).number == prompt.number == 1


def test_finish_twice_by_the_same_run_changes_nothing(registry: Registry) -> None:
    tune = add_tune(registry)
    run_stage(registry, "prepare", tune.id)
    work = registry.work_of(tune.id, "prepare")[0]
    registry.finish(work.id, "run", result={"steps": 1})
    assert registry.get_tune(tune.id).result == {}
    assert len(registry.queued_work("train")) == 1
