"""Tunes through the real jobs, in this process, on the random base."""

from __future__ import annotations

from tunes_dagster.inprocess import drive


def test_a_tune_goes_from_pictures_to_renders(house):
    tune = house.submit(prompts=[{"text": "a photo of ohwx mug", "settings": {"num_images": 2, "seed": 5}}])

    def finished() -> bool:
        prompts = house.registry.list_prompts(tune_id=tune.id)
        return house.status(tune.id) in ("failed", "cancelled") or prompts[0].status in ("done", "failed")

    drive(house.settings, finished, registry=house.registry, instance=house.instance)
    assert house.status(tune.id) == "ready", house.registry.get_tune(tune.id).failure_message
    (prompt,) = house.registry.list_prompts(tune_id=tune.id)
    assert prompt.status == "done", prompt.failure_message
    assert len(prompt.images) == 2 and all(house.store.exists(key) for key in prompt.images)
