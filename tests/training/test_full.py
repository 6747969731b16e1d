"""Full fine-tunes: learn, resume exactly, leave as pipelines that stock diffusers loads, and leave the base alone."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load

from tests.training.conftest import Recorder
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.training import checkpoints, loop, run, verify
from tunes_dagster.training.files import read_header
from tunes_dagster.training.jobs import TrainingResult
from tunes_dagster.training.layouts import Files
from tunes_dagster.training.weights import StackedWeights

FULL = {"kind": "checkpoint", "learning_rate": 1e-3, "rank": None, "targets": None, "checkpoint_every": 2}


def trained(base, store, *jobs) -> list[TrainingResult]:
    outcomes = loop.train(jobs, base, store)
    for outcome in outcomes.values():
        assert isinstance(outcome, TrainingResult), outcome
    return [outcomes[job.tune_id] for job in jobs]


def weights(store, result) -> dict[str, torch.Tensor]:
    return load(store.read_bytes(result.weights_key))


def copied(base) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in base.denoiser.state_dict().items()}


def files_of(result: TrainingResult) -> Files:
    return Files(result.weights_key, result.kohya_key, result.pipeline_key)


def resumed(base, store, make_job, stop: int, **options) -> TrainingResult:
    """Train until a step, stop, and go on in another attempt."""
    job = make_job("one", report=Recorder(cancel_at=stop), **options)
    job.out_prefix = "tunes/again/lora/1"
    loop.train([job], base, store)
    again = make_job("one", **options)
    again.out_prefix, again.resume_from = "tunes/again/lora/2", "tunes/again/lora"
    (result,) = trained(base, store, again)
    assert any(f"Resumed at step {stop}" in note for note in again.report.notes)
    return result


def test_every_weight_is_trained_and_the_base_is_what_it_was(base, store, make_job):
    before, pointers = copied(base), [p.data_ptr() for p in base.denoiser.parameters()]
    (result,) = trained(base, store, make_job("one", **FULL))
    after = weights(store, result)
    assert set(after) == set(before)
    assert all(not torch.equal(after[name], before[name]) for name in before)
    assert all(torch.equal(value, before[name]) for name, value in base.denoiser.state_dict().items())
    assert [p.data_ptr() for p in base.denoiser.parameters()] == pointers
    assert not any(p.requires_grad or p.grad is not None for p in base.denoiser.parameters())


def test_it_learns_what_plain_torch_learns(base64, store, make_job):
    """Two steps against the loop that anybody would write, over the same rows."""
    job = make_job(
        "one", steps=2, lr_schedule="constant", warmup_steps=0, prior_weight=0.0, min_snr_gamma=0.0, **FULL
    )
    (result,) = trained(base64, store, job)
    mine, table = run.TuneRun(run.prepare(job, base64, store), base64), run.TextTable(base64)
    mine.speak(table)
    network, shared = copy.deepcopy(base64.denoiser).requires_grad_(True), base64.denoiser
    adamw = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    base64.denoiser = network
    try:
        for step in range(2):
            mine.step = step
            rows = mine.rows()
            noisy = base64.add_noise(rows.clean.double(), rows.noise.double(), rows.timesteps)
            target = base64.target(rows.clean.double(), rows.noise.double(), rows.timesteps)
            said = base64.predict(
                noisy, rows.timesteps, base64.with_size(table.rows(rows.texts), *rows.bucket)
            )
            (said - target).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            adamw.step()
            adamw.zero_grad()
    finally:
        base64.denoiser = shared
    for name, value in weights(store, result).items():
        torch.testing.assert_close(value, network.state_dict()[name].float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "more", [{}, {"ema_decay": 0.9}, {"optimizer": "prodigy", "learning_rate": 1.0, "warmup_steps": 0}]
)
def test_it_resumes_exactly_and_only_the_newest_checkpoint_keeps_the_optimizer(base, store, make_job, more):
    options = {**FULL, "steps": 6, "checkpoint_every": 2, **more}
    (whole,) = trained(base, store, make_job("one", **options))
    kept = [key.rpartition("/")[2] for key in store.list("tunes/tune_one/lora/1/checkpoints")]
    assert kept == [
        "step-000002.safetensors",
        "step-000004.safetensors",
        "step-000006.safetensors",
        "step-000006.state.safetensors",
    ]
    result = resumed(base, store, make_job, 4, **options)
    first, second = weights(store, whole), weights(store, result)
    assert all(torch.equal(first[name], second[name]) for name in first)
    checkpoints.forget_states(store, "tunes/tune_one/lora")
    assert checkpoints.find_newest(store, "tunes/tune_one/lora") is None
    last = checkpoints.load_weights(store, whole.checkpoints[-1])
    assert all(torch.equal(last[name], first[name]) for name in first)


def test_half_precision_bases_are_trained_in_float32(base_folder, entry, store, make_job):
    from tunes_dagster.families.base import load_family

    half = load_family(entry, base_folder, dtype="bfloat16")
    before = copied(half)
    # So small a step vanishes in bfloat16, and adds up in float32.
    options = {**FULL, "learning_rate": 2e-5, "steps": 6, "checkpoint_every": 3, "lr_schedule": "constant"}
    (whole,) = trained(half, store, make_job("one", **options))
    state = checkpoints.load(store, whole.checkpoints[-1])[1]
    exported = weights(store, whole)
    name = "conv_in.weight"
    assert state[f"values/{name}"].dtype == torch.float32 and exported[name].dtype == torch.bfloat16
    assert float((state[f"values/{name}"] - before[name].float()).abs().mean()) > 2e-5
    second = weights(store, resumed(half, store, make_job, 3, **options))
    assert all(torch.equal(exported[key], second[key]) for key in exported)
    assert all(torch.equal(value, before[key]) for key, value in half.denoiser.state_dict().items())


def test_gradient_checkpointing_changes_no_weight(base, store, make_job, monkeypatch):
    switch_on = base.denoiser.enable_gradient_checkpointing
    first = weights(store, trained(base, store, make_job("one", **FULL))[0])
    seen = []
    monkeypatch.setattr(base.denoiser, "enable_gradient_checkpointing", lambda: (seen.append(1), switch_on()))
    second = weights(store, trained(base, store, make_job("one", gradient_checkpointing=True, **FULL))[0])
    assert seen and not torch.equal(first["conv_in.weight"], base.denoiser.conv_in.weight)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-6)
    assert not base.denoiser.is_gradient_checkpointing


def test_the_pipeline_loads_in_stock_diffusers_and_renders_what_was_trained(base, store, make_job):
    (result,) = trained(base, store, make_job("one", **FULL))
    files = files_of(result)
    assert (
        files.weights_key == f"{files.pipeline_key}/unet/diffusion_pytorch_model.safetensors"
        and not files.kohya_key
    )
    seen = verify.verify(files, "a photo of ohwx woman", base, store)
    assert seen.passed and seen.kohya_difference is None and seen.layers == len(base.denoiser.state_dict())
    header = read_header(store, result.weights_key)
    assert json.loads(header["tunes_dagster.recipe"])["training"]["kind"] == "checkpoint"
    assert header["tunes_dagster.recipe_hash"] == result.recipe_hash
    assert (
        header["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
        and "ss_network_module" not in header
    )
    assert "from_pretrained" in store.read_text(f"{files.pipeline_key}/README.md")


def test_a_lora_after_a_full_tune_in_the_same_run_is_what_it_is_alone(base, store, make_job):
    (alone,) = trained(base, store, make_job("two"))
    wanted = store.read_bytes(alone.weights_key)
    store.delete_prefix("tunes/tune_two")
    trained(base, store, make_job("one", **FULL))
    (after,) = trained(base, store, make_job("two"))
    assert store.read_bytes(after.weights_key) == wanted


def test_cancelled_kept_and_diverged_full_tunes_leave_the_others_alone(base, store, make_job, monkeypatch):
    before = copied(base)
    cancelled = make_job("one", report=Recorder(cancel_at=2), **FULL)
    kept = make_job("two", report=Recorder(cancel_at=2, keep=True), **FULL)
    broken = make_job("six", **FULL)
    original = run.prepare

    def poisoned(job, *given):
        prepared = original(job, *given)
        if job is broken:
            prepared.means = {bucket: means * float("nan") for bucket, means in prepared.means.items()}
        return prepared

    monkeypatch.setattr(run, "prepare", poisoned)
    outcomes = loop.train([cancelled, kept, broken, make_job("ten")], base, store)
    first, second, third, fourth = outcomes.values()
    assert isinstance(first, TrainingResult) and first.tune_id == "tune_ten"
    assert isinstance(second, Failure) and second.code == FailureCode.CANCELLED
    assert checkpoints.find_newest(store, cancelled.out_prefix).endswith("step-000002.safetensors")
    assert isinstance(third, TrainingResult) and third.stopped and third.steps == 2
    assert isinstance(fourth, Failure) and fourth.code == FailureCode.DIVERGED
    assert all(torch.equal(value, before[name]) for name, value in base.denoiser.state_dict().items())


def test_prior_preservation_asks_the_untouched_base(base, store, make_job, monkeypatch):
    seen = []
    predict = type(base).predict

    def watched(self, *given):
        seen.append(torch.equal(next(self.denoiser.parameters()), first))
        return predict(self, *given)

    first = next(base.denoiser.parameters()).clone()
    (plain,) = trained(base, store, make_job("one"))
    monkeypatch.setattr(type(base), "predict", watched)
    job = make_job("one", prior_weight=1.0, **FULL)
    (full,) = trained(base, store, job)
    assert True in seen and seen[-1] is False and seen == sorted(seen, reverse=True)
    assert full.figures["prior_cached"] and not plain.figures["prior_cached"]


def test_a_full_tune_is_continued_by_another(base, store, make_job):
    (first,) = trained(base, store, make_job("one", **FULL))
    job = make_job("two", **{**FULL, "steps": 1, "learning_rate": 1e-12})
    job.recipe = {"continues": {"weights_key": first.weights_key}}
    (second,) = trained(base, store, job)
    before, after = weights(store, first), weights(store, second)
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-8)
    wrong = make_job("two", **FULL)
    (lora,) = trained(base, store, make_job("six"))
    wrong.recipe = {"continues": {"weights_key": lora.weights_key}}
    (outcome,) = loop.train([wrong], base, store).values()
    assert isinstance(outcome, Failure) and outcome.code == FailureCode.WEIGHTS_UNUSABLE


def test_adapters_keep_their_state_in_one_file(base):
    assert StackedWeights.state_apart is False


def test_an_earlier_checkpoint_is_published_as_a_pipeline_of_its_own(base, store, make_job):
    from tunes_dagster.evaluation.publishing import publish_checkpoint

    (result,) = trained(base, store, make_job("one", **FULL))
    changed = publish_checkpoint(result.weights_key, result.checkpoints[0], 2, base, store)
    files = Files(changed.weights_key, changed.kohya_key, changed.pipeline_key)
    assert files.pipeline_key == "tunes/tune_one/lora/1/step-000002/pipeline" and not files.kohya_key
    wanted = checkpoints.load_weights(store, result.checkpoints[0])
    published = load(store.read_bytes(files.weights_key))
    assert all(torch.equal(published[name], value) for name, value in wanted.items())
    assert verify.verify(files, "a photo of ohwx woman", base, store).passed
    header = read_header(store, files.weights_key)
    assert json.loads(header["tunes_dagster.recipe"])["steps_done"] == 2
    card = store.read_text(f"{files.pipeline_key}/README.md")
    assert "| steps | 2 |" in card and changed.weights_recipe_hash in card


def test_files_made_piece_by_piece_are_whole_or_not_there(tmp_path):
    from tunes_dagster.core.store import Store
    from tunes_dagster.training.files import write_tensors

    tensors = {
        "b": torch.arange(6.0).view(2, 3),
        "a": torch.ones(3, dtype=torch.int64),
        "none": torch.zeros(0, 2),
    }
    tensors["channels last"] = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    for store in (Store(tmp_path / "local"), Store(f"memory://pieces-{tmp_path.name}")):
        for key, dtype in (("x/plain.safetensors", None), ("x/half.safetensors", torch.bfloat16)):
            write_tensors(store, key, tensors, {"é": "ü"}, dtype)
            found = load(store.read_bytes(key))
            assert read_header(store, key) == {"é": "ü"} and found.keys() == tensors.keys()
            for name, value in tensors.items():
                wanted = value if dtype is None or value.dtype == torch.int64 else value.to(dtype)
                assert torch.equal(found[name], wanted) and found[name].dtype == wanted.dtype
        with pytest.raises(RuntimeError, match="half way"), store.writing("x/broken") as file:
            file.write(b"half")
            raise RuntimeError("half way")
        assert list(store.list("x")) == ["x/half.safetensors", "x/plain.safetensors"]
        with store.local_folder("x") as folder:
            assert {one.name for one in folder.iterdir()} == {"half.safetensors", "plain.safetensors"}


def test_the_planner_knows_who_trains_alone_and_lets_the_others_share():
    from itertools import product

    from tunes_dagster.core.recipe import TrainingOptions
    from tunes_dagster.families.sizes import known_sizes
    from tunes_dagster.training.methods import method_of
    from tunes_dagster.training.planner import Machine, plan_memory, trains_alone

    kinds = ({"kind": "lora"}, {"kind": "lora", "dora": True}, {"kind": "pti"}, {"kind": "checkpoint"})
    for kind, optimizer in product(kinds, ("adamw", "adamw8bit")):
        options = TrainingOptions(**kind, optimizer=optimizer)
        assert trains_alone(options) is not method_of(options).stacks, options

    full, lora = TrainingOptions(kind="checkpoint", batch_size=1), TrainingOptions(rank=16, batch_size=1)
    sizes, large = known_sizes()["sdxl1"], Machine("cuda", 140, "bfloat16", True)
    alone, together = (plan_memory(some, sizes, 1024, large, 4) for some in ([full], [full, lora, lora]))
    assert alone.cohort == 1 and together.cohort == 4
    assert together.needed_gib == pytest.approx(alone.needed_gib)
    averaged = plan_memory([full.model_copy(update={"ema_decay": 0.99})], sizes, 1024, large, 4)
    assert averaged.needed_gib - alone.needed_gib == pytest.approx(2.567e9 * 4 / 2**30, rel=0.01)
    with pytest.raises(Failure) as error:
        plan_memory([full], sizes, 1024, Machine("cuda", 24, "bfloat16", True))
    assert error.value.facts["needed_gib"] > 30 and "`lora` instead of a `checkpoint`" in error.value.remedy
