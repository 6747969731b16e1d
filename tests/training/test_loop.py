"""The loop: agrees with a plain reference, keeps tunes apart, resumes exactly, leaves others alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from tests.training.conftest import Recorder, add_picture
from tests.training.killable import make_killable
from tunes_dagster.core.failures import Cancelled, Failure, FailureCode
from tunes_dagster.training import cache, checkpoints, files, order, prior, run
from tunes_dagster.training.jobs import TrainExample, TrainingResult, learning_rate
from tunes_dagster.training.loop import patient, train

DAMAGE = {
    "random": bytes(random.Random(1).randbytes(4096)),
    "page": b"<!DOCTYPE html><html><body>502 Bad Gateway</body></html>" * 20,
    "empty": b"",
    "zeros": bytes(64),
    "no dict": (4).to_bytes(8, "little") + b"[1] ",
    "deep": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "another file": save({"a": torch.zeros(2)}),
}


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_a_damaged_checkpoint_is_passed_over_by_name(store, damage):
    def write(step: int) -> str:
        info = checkpoints.CheckpointInfo(step, "data", 1.0, 4, ["layer"])
        key = checkpoints.checkpoint_key("tunes/t/lora/1", step)
        checkpoints.save(store, key, info, {"x": torch.ones(2)}, {"values": torch.ones(2)})
        return key

    good, bad, passed = write(10), write(20), []
    store.write_bytes(bad, DAMAGE[damage])
    assert checkpoints.find_newest(store, "tunes/t/lora", "data", passed_over=passed.append) == good
    assert passed == [bad]
    for read in (checkpoints.load, checkpoints.load_weights):
        if (read, damage) != (checkpoints.load_weights, "another file"):
            with pytest.raises(Failure) as raised:
                read(store, bad)
            assert raised.value.code == FailureCode.WEIGHTS_UNUSABLE and bad in raised.value.message
    if damage != "another file":
        with pytest.raises(Failure, match="is damaged"):
            files.read_header(store, bad)
    assert checkpoints.find_newest(store, "tunes/t/lora", "data", most=9) is None


def weights(store, outcome) -> dict[str, torch.Tensor]:
    assert isinstance(outcome, TrainingResult), outcome
    return load(store.read_bytes(outcome.weights_key))


def final_state(store, outcome) -> dict[str, torch.Tensor]:
    assert isinstance(outcome, TrainingResult), outcome
    return checkpoints.load(store, outcome.checkpoints[-1])[1]


def reference_train(job, base, store) -> dict[str, torch.Tensor]:
    """Train one tune the obvious way: peft's layers, torch's AdamW and clipping, one row's loss after another."""
    import copy

    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    prepared = run.prepare(job, base, store)
    options, unet = job.options, copy.deepcopy(base.denoiser)
    names = base.adapter_targets(options.targets)
    unet.add_adapter(LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules=names))
    first = order.generator(options.seed, order.INITIAL)
    parameters = dict(unet.named_parameters())
    for name in names:
        down = parameters[f"{name}.lora_A.default.weight"]
        bound = 1 / down[0].numel() ** 0.5
        uniform = torch.rand(down.shape, generator=first, dtype=torch.float64)
        down.data = ((uniform * 2 - 1) * bound).to(base.dtype)
        parameters[f"{name}.lora_B.default.weight"].data.zero_()
    trained = [p.data.to(base.dtype) for p in unet.parameters() if p.requires_grad]
    trained = [p for p in unet.parameters() if p.requires_grad]
    for p in trained:
        p.data = p.data.to(base.dtype)
    adamw = torch.optim.AdamW(trained, betas=(0.9, 0.99), weight_decay=options.weight_decay)
    batches = order.BucketOrder([i.bucket for i in job.items], options.batch_size, options.seed)

    def mse(noisy, timestep, text, target, side):
        conditioning = base.with_size({k: v[None] for k, v in prepared.texts[text].items()}, *side)
        added = {"text_embeds": conditioning["pooled"], "time_ids": conditioning["time_ids"]}
        said = unet(
            noisy[None], timestep[None], encoder_hidden_states=conditioning["hidden"], added_cond_kwargs=added
        ).sample[0]
        return (said - target).square().mean()

    for step in range(job.total_steps):
        indices = batches.batch(step)
        bucket = job.items[indices[0]].bucket
        size = base.latent_shape(*bucket)
        prior_rows = options.batch_size if prepared.prior_set else 0
        draws = order.draw(
            options.seed,
            step,
            len(indices),
            size,
            options.caption_dropout,
            prior_rows,
            len(prepared.prior_set or []),
        )
        loss = 0
        for row, i in enumerate(indices):
            _, inside = prepared.position[i]
            clean = prepared.means[bucket][inside] + prepared.stds[bucket][inside] * draws.posterior[row]
            noise = draws.noise[row].to(base.dtype)
            moment = (draws.uniform[row : row + 1] * 1000).long()
            noisy = base.add_noise(clean[None], noise[None], moment)[0]
            target = base.target(clean[None], noise[None], moment)[0]
            weight = base.loss_weights(moment, torch.tensor([options.min_snr_gamma or 0.0]))[0]
            text = "" if draws.dropped[row] else job.items[i].caption
            loss = loss + weight * mse(noisy, moment[0], text, target, bucket) / len(indices)
        if prepared.prior_set:
            known = prepared.prior_set
            side = (known.noisy.shape[3] * 8, known.noisy.shape[2] * 8)
            for j in draws.prior.tolist():
                one = mse(known.noisy[j], known.timesteps[j], known.texts[j], known.predictions[j], side)
                loss = loss + options.prior_weight * one / prior_rows
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, options.max_grad_norm)
        adamw.param_groups[0]["lr"] = learning_rate(options, step, job.total_steps)
        adamw.step()
        adamw.zero_grad()
    return {f"unet.{k}": v.float() for k, v in get_peft_model_state_dict(unet).items()}


@pytest.mark.parametrize(
    ("options", "buckets"),
    [
        ({}, ((64, 64),)),
        ({"prior_weight": 0.0, "min_snr_gamma": 0.0, "lr_schedule": "constant"}, ((64, 64), (48, 80))),
        ({"prior_batch_size": 2, "weight_decay": 0.1, "max_grad_norm": 0.05}, ((48, 80), (64, 64), (48, 80))),
    ],
)
def test_the_loop_is_the_plain_loop(base64, store, make_job, options, buckets):
    job = make_job(buckets=buckets, pictures=4, **options)
    ours = weights(store, train([job], base64, store)[job.tune_id])
    reference = reference_train(job, base64, store)
    assert ours.keys() == reference.keys()
    for key, value in reference.items():
        # Beside the whole tensor: where gradients are next to nothing, Adam divides what is rounded by its eps of 1e-8.
        assert torch.dist(ours[key], value) < 1e-5 * value.norm(), key
    assert any(v.abs().max() > 1e-3 for k, v in ours.items() if "lora_B" in k)


def test_in_a_cohort_a_tune_becomes_what_it_becomes_alone(base64, store, make_job):
    jobs = [
        make_job("a", steps=5, seed=1),
        make_job("b", steps=3, rank=8, alpha=4.0, targets="attention", batch_size=3, seed=2),
        make_job("c", steps=5, buckets=((64, 64), (48, 80)), prior_weight=0.0, ema_decay=0.9, seed=3),
    ]
    together = train(jobs, base64, store)
    cohort = {job.tune_id: final_state(store, together[job.tune_id]) for job in jobs}
    for job in jobs:  # which writes over the cohort's files
        mine, theirs = final_state(store, train([job], base64, store)[job.tune_id]), cohort[job.tune_id]
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            torch.testing.assert_close(
                theirs[name], value, rtol=1e-6, atol=1e-12, msg=f"{job.tune_id} {name}"
            )


def test_checkpointing_changes_nothing(base64, store, make_job):
    mine = final_state(store, train([make_job()], base64, store)["tune_one"])
    theirs = final_state(store, train([make_job(gradient_checkpointing=True)], base64, store)["tune_one"])
    torch.testing.assert_close(mine["values"], theirs["values"], rtol=1e-9, atol=1e-12)


def test_the_same_recipe_gives_the_same_file_and_another_seed_does_not(base, store, make_job):
    one = store.read_bytes(train([make_job()], base, store)["tune_one"].weights_key)
    assert store.read_bytes(train([make_job()], base, store)["tune_one"].weights_key) == one
    assert store.read_bytes(train([make_job(seed=77)], base, store)["tune_one"].weights_key) != one


def test_a_gpu_is_asked_for_kernels_that_repeat_themselves_and_only_while_it_trains():
    """The switches alone, which need no GPU; that the weights repeat on one is untried."""
    from tunes_dagster.training.repeatable import repeatable

    def switches():
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        )

    before = switches()
    with repeatable(torch.device("cpu")):
        assert switches() == before
    with pytest.raises(RuntimeError), repeatable(torch.device("cuda")):
        assert switches() == (True, False) and torch.is_deterministic_algorithms_warn_only_enabled()
        raise RuntimeError
    assert switches() == before == (False, True)


def test_a_resumed_tune_ends_bit_for_bit_as_an_uninterrupted_one(base, store, make_job):
    def job(prefix, **more):
        made = make_job(steps=7, checkpoint_every=3, ema_decay=0.5, **more)
        made.out_prefix = f"tunes/tune_one/lora/{prefix}"
        return made

    whole = train([job("whole")], base, store)["tune_one"]
    stopped = job("first", report=Recorder(cancel_at=5))
    assert isinstance(train([stopped], base, store)["tune_one"], Cancelled)
    for step in (5, 3):
        again = job(f"second-{step}")
        again.resume_from = f"tunes/tune_one/lora/first/checkpoints/step-{step:06d}.safetensors"
        resumed = train([again], base, store)["tune_one"]
        assert f"step {step} of 7" in " ".join(again.report.notes)
        assert store.read_bytes(resumed.weights_key) == store.read_bytes(whole.weights_key)
        for name, value in final_state(store, whole).items():
            assert torch.equal(final_state(store, resumed)[name], value), name
        assert [point for point in resumed.loss_curve if point[0] > 5] == whole.loss_curve[5:]
    other = job("third", learning_rate=0.02)
    other.resume_from = "tunes/tune_one/lora/first"
    train([other], base, store)
    assert any("starts from the beginning" in note for note in other.report.notes)


def test_fewer_steps_than_are_done_already_are_what_was_asked_for(base, store, make_job):
    def job(prefix, steps):
        made = make_job(steps=steps, checkpoint_every=2, lr_schedule="constant", prior_weight=0.0)
        made.out_prefix = f"tunes/tune_one/lora/{prefix}"
        return made

    train([job("long", 4)], base, store)
    short = job("short", 3)
    short.resume_from = "tunes/tune_one/lora/long"
    result = train([short], base, store)["tune_one"]
    assert "step 2 of 3" in " ".join(short.report.notes)
    assert result.steps == result.recipe["steps_done"] == 3
    fresh = train([job("fresh", 3)], base, store)["tune_one"]
    assert store.read_bytes(result.weights_key) == store.read_bytes(fresh.weights_key)


def test_cached_latents_of_another_kind_or_broken_numbers_are_none(store):
    good = torch.ones(2)
    for name, tensors, usable in (
        ("good", {"mean": good, "std": good}, True),
        ("other", {"noisy": good}, False),
        ("shape", {"mean": good, "std": torch.ones(3)}, False),
        ("nan", {"mean": good * float("nan"), "std": good}, False),
    ):
        cache.write_tensors(store, name, {part: value.clone() for part, value in tensors.items()})
        assert (cache._posterior(store, name) is not None) is usable, name


def test_sigkill_at_any_moment_loses_at_most_an_interval(base, base_folder: Path, store, make_job):
    keys = [item.key for item in make_job().items]
    root = Path(__file__).parents[2]
    killed = subprocess.Popen(
        [sys.executable, "-m", "tests.training.killable", str(base_folder), str(store.root), *keys],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    at = random.randint(5, 50)
    assert killed.stdout is not None
    for line in killed.stdout:
        if int(line) >= at:
            break
    time.sleep(random.random() * 0.05)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    report = Recorder()
    resumed = train([make_killable("2", keys, report)], base, store)["tune_k"]
    first = next(done for done, _, numbers in report.steps if "loss" in numbers)
    assert at - 4 <= first - 1, f"killed after step {at}, went on with step {first}"
    again = store.read_bytes(resumed.weights_key)
    store.delete_prefix("tunes/tune_k")
    whole = train([make_killable("3", keys, Recorder())], base, store)["tune_k"]
    assert weights(store, whole).keys() == load(again).keys()
    assert all(torch.equal(load(again)[key], value) for key, value in weights(store, whole).items())


def test_divergence_cancel_and_broken_data_leave_the_others_alone(base64, store, make_job):
    told: list[str] = []
    good = make_job("good", steps=6)
    wild = make_job("wild", steps=6, learning_rate=0.1, max_grad_norm=1000.0, prior_weight=0.0)
    stopped = make_job("stopped", steps=6, report=Recorder(cancel_at=2))
    kept = make_job("kept", steps=6, report=Recorder(cancel_at=3, keep=True))
    broken = make_job("broken")
    store.write_bytes(broken.items[0].key, b"not a picture")
    alone = final_state(store, train([good], base64, store)["tune_good"])
    # A poisoned caption embedding is the surest way to a NaN.
    original = run.prepare

    def poison(job, *args):
        prepared = original(job, *args)
        if job is wild:
            prepared.means = {k: v * float("nan") for k, v in prepared.means.items()}
        return prepared

    patch = pytest.MonkeyPatch()
    patch.setattr(run, "prepare", poison)
    try:
        outcomes = train(
            [good, wild, stopped, kept, broken], base64, store, lambda tune, _: told.append(tune)
        )
    finally:
        patch.undo()
    assert outcomes["tune_wild"].code == FailureCode.DIVERGED
    assert isinstance(outcomes["tune_stopped"], Cancelled)
    assert checkpoints.find_newest(store, stopped.out_prefix).endswith("step-000002.safetensors")
    assert outcomes["tune_broken"].code == FailureCode.PICTURE_UNREADABLE
    assert outcomes["tune_kept"].stopped and outcomes["tune_kept"].steps == 3
    assert sorted(told) == sorted(outcomes) and told[0] == "tune_broken"
    together = final_state(store, outcomes["tune_good"])
    torch.testing.assert_close(together["values"], alone["values"], rtol=1e-6, atol=1e-13)
    assert all(not name.endswith(".base") for name, _ in base64.denoiser.named_modules())


class Keep(Recorder):
    """Has been asked to stop and keep since before its attempt began."""

    def check_cancelled(self) -> None:
        raise Cancelled(keep=True)


def test_what_an_interrupted_attempt_learned_is_kept_by_the_next_one(base, store, make_job):
    stopped = make_job(steps=6, report=Recorder(cancel_at=2))
    assert isinstance(train([stopped], base, store)["tune_one"], Cancelled)
    store.delete_prefix("cache")  # everything is encoded anew, with the wish standing all the while
    again = make_job(steps=6, report=Keep())
    again.resume_from, again.out_prefix = "tunes/tune_one/lora", "tunes/tune_one/lora/2"
    patient(again, store).check_cancelled()  # nor does it end while it waits for a device
    kept = train([again], base, store)["tune_one"]
    assert isinstance(kept, TrainingResult) and kept.stopped and 2 <= kept.steps <= 3
    nothing = make_job("two", report=Keep())
    assert isinstance(train([nothing], base, store)["tune_two"], Cancelled), "there is nothing to keep"


def test_the_second_tune_on_the_same_pictures_encodes_nothing(base, store, make_job, monkeypatch):
    first = train([make_job()], base, store)["tune_one"]
    before = weights(store, first)
    assert first.figures["pictures_cached"] == "0/3" and not first.figures["prior_cached"]

    def never(*args, **kwargs):
        raise AssertionError("encoded again")

    monkeypatch.setattr(type(base), "encode_images", never)
    monkeypatch.setattr(type(base), "encode_text", never)
    monkeypatch.setattr(type(base), "sample", never)
    again = make_job()
    second = train([again], base, store)["tune_one"]
    assert second.figures["pictures_cached"] == "3/3" and second.figures["prior_cached"]
    assert any("3 of 3 from the cache" in note for note in again.report.notes)
    for key, value in before.items():
        assert torch.equal(weights(store, second)[key], value)


def test_a_damaged_cache_entry_is_made_again(base, store, make_job):
    first = train([make_job()], base, store)["tune_one"]
    before = weights(store, first)
    for key in store.list("cache"):
        store.write_bytes(key, store.read_bytes(key)[:10])
    after = weights(store, train([make_job()], base, store)["tune_one"])
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_progress_is_told_about_every_hundredth(base, store, make_job):
    job = make_job(steps=230, batch_size=1, pictures=1, prior_weight=0.0, targets="attention")
    result = train([job], base, store)["tune_one"]
    told = [done for done, total, numbers in job.report.steps if "loss" in numbers]
    assert told == [*range(2, 231, 2)]
    assert [step for step, _ in result.loss_curve] == told
    assert result.steps == 230 and len(result.checkpoints) == 8


def test_no_pictures_is_a_reason(base, store, make_job):
    job = make_job()
    job.items = []
    assert train([job], base, store)["tune_one"].code == FailureCode.TOO_FEW_PICTURES


def test_prior_rows_keep_the_base_where_it_was(base, store, make_job):
    """With weight on the prior alone, the adapter learns nothing that the base would not say."""
    kept = train([make_job("kept", steps=10, prior_weight=10.0)], base, store)["tune_kept"]
    free = train([make_job("kept", steps=10, prior_weight=1e-6)], base, store)["tune_kept"]
    assert kept.loss_curve[-1][1] > free.loss_curve[-1][1] * 0.9
    job = make_job("kept", steps=10, prior_weight=10.0)
    prepared = run.prepare(job, base, store)
    assert len(prepared.prior_set) == 2 * prior.CLASS_DRAWS + 3 * prior.OWN_DRAWS


def test_class_pictures_that_came_along_take_the_place_of_rendered_ones(base, store, make_job):
    job = make_job("kept", steps=2, prior_prompts=0)
    plain = job.data_hash("")
    job.prior_pictures = [
        TrainExample(key=add_picture(store, 90 + i), caption=text, bucket=(0, 0))
        for i, text in enumerate(("a woman on grass", "ohwx woman at night"))
    ]
    assert job.data_hash("") != plain
    prepared = run.prepare(job, base, store)
    assert len(prepared.prior_set) == 2 * prior.CLASS_DRAWS + 3 * prior.OWN_DRAWS
    assert set(prepared.prior_set.texts[: 2 * prior.CLASS_DRAWS]) == {"a woman on grass", "a woman at night"}
    assert train([job], base, store)["tune_kept"].steps == 2
    unused = make_job("kept", prior_weight=0.0, report=Recorder())
    unused.prior_pictures = job.prior_pictures
    assert run.prepare(unused, base, store).prior_set is None
    assert any("2 regularisation pictures are not used" in said for said in unused.report.notes)
