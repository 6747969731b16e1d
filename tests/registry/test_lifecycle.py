"""A tune from accepted to ready, and what follows from each step."""

from __future__ import annotations

import pytest

from tests.support.registry import Clock, add_prompt, add_tune, make_ready, prompt_request, run_stage
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.results import TuneResult
from tunes_dagster.registry import Registry, Use


def test_a_tune_goes_from_queued_to_ready(registry: Registry) -> None:
    tune = add_tune(registry, title="Rex", prompts=[prompt_request()])
    assert registry.tunes.get(tune.id).status == "queued"
    seen = []
    for kind in ("prepare", "train", "finish"):
        (queued,) = registry.work.queued(kind)
        (submitted,) = registry.work.submit([queued.id])
        assert submitted.run_key == f"{queued.id}:1" and submitted.attempt == 1
        work = registry.work.claim(kind, tune.id, f"run-{kind}", run_key=submitted.run_key)
        seen.append(registry.tunes.get(tune.id).status)
        assert registry.work.heartbeat(work.id, f"run-{kind}") == ""
        registry.work.progress(
            work.id, f"run-{kind}", phase="training", message="m", step=3, total=9, seconds_left=6.0
        )
        assert registry.tunes.get(tune.id).step == 3
        left = {
            "prepare": TuneResult(captions=1),
            "train": TuneResult(steps=2),
            "finish": TuneResult(stopped=True),
        }
        registry.work.finish(work.id, f"run-{kind}", result=left[kind])
        seen.append(registry.tunes.get(tune.id).status)
    assert seen == ["preparing", "prepared", "training", "trained", "finishing", "ready"]
    done = registry.tunes.get(tune.id)
    assert done.result == {"captions": 1, "steps": 2, "stopped": True, "version": 1}
    assert done.ready_at is not None and done.phase == ""
    (prompt,) = registry.prompts.rows(tune_id=tune.id)
    assert prompt.status == "queued" and prompt.queued_at == done.ready_at
    (callback,) = registry.outbox.rows()
    assert callback.event == "tune.ready" and callback.body["data"]["id"] == tune.id
    phases = [event.phase for event in registry.events.of(tune.id)]
    assert phases[0] == "queued" and phases[-1] == "ready" and phases.count("training") == 3


def test_found_by_id_number_and_newest_title(registry: Registry) -> None:
    first, second = add_tune(registry, title="Rex"), add_tune(registry, title="Rex")
    assert (first.number, second.number) == (1, 2)
    titled_like_a_number = add_tune(registry, title="1")

    def meant(word: str | int, **more: bool) -> str:
        return registry.objects.tune_named("local", word, **more).id

    assert meant(1) == meant(" 1 ") == first.id and meant("2") == meant(second.id) == second.id
    assert meant("3") == titled_like_a_number.id and meant("Rex") == second.id
    registry.work.delete_tune(second.id)
    assert meant("Rex") == first.id and meant("2", deleted=True) == second.id
    for word in ("Fifi", "2", second.id):
        with pytest.raises(Failure) as error:
            meant(word)
        assert error.value.code == FailureCode.UNKNOWN_TUNE
    registry.work.delete_tune(first.id)
    assert meant("1") == titled_like_a_number.id, "no live tune has that number any more"
    for word in ("1", "Rex"):
        with pytest.raises(Failure):
            registry.tunes.get(word)


def test_words_mean_nothing_in_another_account(registry: Registry) -> None:
    registry.accounts.add("ann"), registry.accounts.add("ben")
    hers = add_tune(registry, account_id="ann", title="style")
    his = add_tune(registry, account_id="ben", title="style")
    newest = add_tune(registry, account_id="ann", title="style")
    also_his = add_tune(registry, account_id="ben", title=str(hers.number))
    assert registry.objects.tune_named("ben", "style").id == his.id
    assert registry.objects.tune_named("ann", "style").id == newest.id
    assert registry.objects.tune_named("ben", hers.number).id == also_his.id
    said = set()
    for word in (hers.id, newest.id, newest.number, "nobody"):
        with pytest.raises(Failure) as error:
            registry.objects.tune_named("ben", word)
        said.add(str(error.value).replace(str(word), "WORD"))
    assert len(said) == 1, "somebody else's tune answers like none"
    with pytest.raises(Failure):
        add_prompt(registry, prompt_request(), base_id="tiny-sdxl", account_id="ben", tune_id=hers.id)
    with pytest.raises(Failure):
        tags = [Use(hers.id, "lora", "style", 1.0)]
        add_prompt(registry, prompt_request(), base_id="tiny-sdxl", account_id="ben", tags=tags)
    assert registry.prompts.rows() == []


def test_lists_page_by_number(registry: Registry) -> None:
    tunes = [add_tune(registry) for _ in range(5)]
    page = registry.tunes.rows(limit=2)
    assert [tune.number for tune in page] == [5, 4]
    assert [tune.number for tune in registry.tunes.rows(limit=2, before=page[-1].number)] == [3, 2]
    registry.work.delete_tune(tunes[4].id)
    assert [tune.number for tune in registry.tunes.rows(limit=1)] == [4]
    assert [tune.number for tune in registry.tunes.rows("deleted")] == [5]
    assert registry.tunes.count() == {"queued": 4, "deleted": 1}


def test_the_same_id_twice_is_refused(registry: Registry) -> None:
    tune = add_tune(registry)
    with pytest.raises(Failure) as error:
        add_tune(registry, id=tune.id)
    assert error.value.code == FailureCode.CONFLICT


def test_awaiting_images_has_no_work_until_released(registry: Registry) -> None:
    tune = add_tune(registry, status="awaiting_images")
    assert registry.work.queued("prepare") == []
    registry.tunes.release(tune.id)
    assert [work.subject_id for work in registry.work.queued("prepare")] == [tune.id]


def test_a_person_in_the_ui_redoes_a_ready_tune_quietly(registry: Registry, clock: Clock) -> None:
    tune = make_ready(registry, add_tune(registry))
    owed = len(registry.outbox.rows())
    work = registry.work.claim("train", tune.id, "ui-run")
    assert (work.origin, work.attempt, work.tries) == ("ui", 2, 1)
    registry.tunes.set_recipe(work.id, "ui-run", {"seed": 7})
    registry.work.finish(work.id, "ui-run", result={"weights_key": "new"})
    after = registry.tunes.get(tune.id)
    assert after.status == "ready" and after.result["weights_key"] == "new" and after.recipe == {"seed": 7}
    assert len(registry.outbox.rows()) == owed and registry.work.queued("finish") == []


def test_a_failed_ui_attempt_leaves_a_ready_tune_ready(registry: Registry) -> None:
    tune = make_ready(registry, add_tune(registry))
    work = registry.work.claim("train", tune.id, "ui-run")
    registry.work.fail(work.id, "ui-run", RuntimeError("boom"))
    assert registry.tunes.get(tune.id).status == "ready"
    assert registry.work.get(work.id).state == "failed"


def test_prompts_of_a_failed_tune_fail_with_it(registry: Registry) -> None:
    tune = add_tune(registry, prompts=[prompt_request(callback_url="http://caller.test/p")])
    work = registry.work.claim("prepare", tune.id, "run")
    registry.work.fail(work.id, "run", Failure(FailureCode.TOO_FEW_PICTURES, "Only one.", "Send more."))
    (prompt,) = registry.prompts.rows(tune_id=tune.id)
    assert prompt.status == "failed" and prompt.failure_code == "too_few_pictures"
    assert {c.event for c in registry.outbox.rows()} == {"tune.failed", "prompt.failed"}
    with pytest.raises(Failure) as error:
        add_prompt(registry, prompt_request(), base_id="tiny-sdxl", tune_id=tune.id)
    assert error.value.code == FailureCode.CONFLICT


def test_prompts_for_a_ready_tune_are_queued_at_once(registry: Registry) -> None:
    tune = make_ready(registry, add_tune(registry))
    prompt = add_prompt(registry, prompt_request(), base_id="tiny-sdxl", tune_id=tune.id)
    assert prompt.status == "queued" and prompt.base == tune.base
    assert registry.prompts.get(prompt.id).number == prompt.number == 1


def test_finish_twice_by_the_same_run_changes_nothing(registry: Registry) -> None:
    tune = add_tune(registry)
    run_stage(registry, "prepare", tune.id)
    work = registry.work.of(tune.id, "prepare")[0]
    registry.work.finish(work.id, "run", result={"steps": 1})
    assert registry.tunes.get(tune.id).result == {}
    assert len(registry.work.queued("train")) == 1
