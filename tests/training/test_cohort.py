"""The cohort's promise: whoever trains beside a tune, and whenever they come and go, its weights stay its own."""

from __future__ import annotations

import re

import pytest
import torch

from tests.support.doubles import write_double
from tests.support.families import CASES, entry_of
from tests.training.conftest import Recorder, hash_of
from tunes_dagster.core.failures import Cancelled, FailureCode
from tunes_dagster.families.base import load_family
from tunes_dagster.training import checkpoints, loop, run
from tunes_dagster.training.jobs import TrainingResult
from tunes_dagster.training.loop import train

# What differs between the members; ranks are padded to the largest one.
MEMBERS: list[dict] = [
    {"rank": 4},
    {"rank": 8, "alpha": 4.0},
    {"rank": 4, "learning_rate": 2e-3, "ema_decay": 0.9},
    {"rank": 6, "max_grad_norm": 0.01},
    {"rank": 4, "batch_size": 2},
    {"rank": 4, "caption_dropout": 0.5},
    {"rank": 5, "weight_decay": 0.1},
    {"rank": 4, "lr_schedule": "linear"},
]


# One per class of denoiser; the others of a family differ in what they are told, not in what is trained.
DENOISERS = ("sd15", "sdxl", "flux-dev", "flux2-klein")


@pytest.fixture(scope="module", params=DENOISERS)
def load(request, tmp_path_factory):
    """A function that loads one family's random base in a precision."""
    folder = tmp_path_factory.mktemp("bases") / request.param
    case = CASES[request.param]
    write_double(case.double, folder, **case.changed)
    return lambda dtype: load_family(entry_of(request.param, folder), folder, dtype=dtype)


@pytest.fixture
def member(make_job):
    """A function that makes a cheap job; keyword arguments are training options."""

    def make(name: str, **options):
        chosen = {
            "steps": 20,
            "rank": 4,
            "learning_rate": 1e-3,
            "batch_size": 1,
            "targets": "attention",
            "prior_weight": 0.0,
            "min_snr_gamma": 0.0,
            "checkpoint_every": 100,
            "pictures": 2,
        }
        return make_job(name, **{**chosen, **options})

    return make


def final_state(store, outcome) -> dict[str, torch.Tensor]:
    assert isinstance(outcome, TrainingResult), outcome
    return checkpoints.load(store, outcome.checkpoints[-1])[1]


def alone(job, base, store):
    """Train a job by itself, in a folder of its own: in the cohort's it would overwrite what it is compared with."""
    before, job.out_prefix = job.out_prefix, f"tunes/{job.tune_id}/alone"
    store.delete_prefix(job.out_prefix)
    try:
        outcome = train([job], base, store)[job.tune_id]
    finally:
        job.out_prefix = before
    assert isinstance(outcome, TrainingResult), outcome
    assert all("/alone/" in key for key in outcome.checkpoints)
    return outcome


def assert_equal(theirs: dict[str, torch.Tensor], mine: dict[str, torch.Tensor], name: str) -> None:
    """Everything of a checkpoint (values, moments, average) to the digits that double precision leaves."""
    assert theirs.keys() == mine.keys()
    assert mine["values"].dtype == torch.float64
    for part, value in mine.items():
        torch.testing.assert_close(theirs[part], value, rtol=1e-6, atol=1e-13, msg=f"{name} {part}")


# By default the largest rank and the larger batch are trained alone; the proof trains all eight.
SOME = [pytest.param((1, 4), id="two"), pytest.param(range(8), id="all", marks=pytest.mark.proof)]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("some", SOME)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_eight_tunes_together_become_what_each_becomes_alone(load, store, member, checkpointing, some):
    base = load("float64")
    jobs = [
        member(f"t{i}", gradient_checkpointing=checkpointing, **options) for i, options in enumerate(MEMBERS)
    ]
    together = train(jobs, base, store)
    for job in (jobs[i] for i in some):
        job.options.gradient_checkpointing = False  # alone always without
        mine = final_state(store, alone(job, base, store))
        assert_equal(final_state(store, together[job.tune_id]), mine, job.tune_id)
        assert mine["values"].abs().max() > 1e-3


def products(store, outcome) -> dict[str, torch.Tensor]:
    """Return B·A of each layer."""
    adapter = checkpoints.load_weights(store, outcome.checkpoints[-1])
    stems = [key.removesuffix(".lora_A.weight") for key in adapter if key.endswith(".lora_A.weight")]
    return {
        stem: adapter[f"{stem}.lora_B.weight"].flatten(1) @ adapter[f"{stem}.lora_A.weight"].flatten(1)
        for stem in stems
    }


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("some", SOME)
def test_in_single_precision_each_layer_does_the_same(load, store, member, some):
    base = load("float32")
    # Pictures of 64 pixels are one place in the middle of a UNet of four levels (SD 1.5). Attention to one place is the
    # same whatever is asked, so these gradients are nothing but rounding, which Adam makes as large as any other.
    one_place = len(getattr(base.denoiser.config, "block_out_channels", ())) == 4
    jobs = [member(f"t{i}", **options) for i, options in enumerate(MEMBERS)]
    together = train(jobs, base, store)
    furthest = 0.0
    for job in (jobs[i] for i in some):
        mine = products(store, alone(job, base, store))
        for stem, theirs in products(store, together[job.tune_id]).items():
            assert mine[stem].norm() > 0
            if one_place and re.search(r"mid_block.*attn1\.to_[qk]$", stem):
                continue
            share = float((theirs - mine[stem]).norm() / mine[stem].norm())
            assert share <= 1e-3, f"{job.tune_id} {stem}"
            furthest = max(furthest, share)
    print(f"B·A differs by at most {furthest:.1e} of its norm")


def test_whoever_leaves_or_joins_changes_nobody(load, store, member, monkeypatch):
    """One turns into NaN, one is cancelled, one cannot begin, one joins late; the others do not notice."""
    base = load("float64")
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_LOOKS", 0.0)
    good, wild = member("good", steps=6), member("wild", steps=6)
    stopped, broken = member("stopped", steps=6, report=Recorder(cancel_at=2)), member("broken")
    late = member("late", steps=3, rank=6)
    store.write_bytes(broken.items[0].key, b"not a picture")
    original = run.prepare

    def poisoned(job, *given):
        prepared = original(job, *given)
        if job is wild:
            prepared.means = {bucket: means * float("nan") for bucket, means in prepared.means.items()}
        return prepared

    monkeypatch.setattr(run, "prepare", poisoned)
    coming = [[late]]
    outcomes = train(
        [good, wild, stopped, broken],
        base,
        store,
        waiting=lambda free: coming.pop() if coming else [],
        places=4,
    )
    assert outcomes["tune_wild"].code == FailureCode.DIVERGED and not coming
    assert isinstance(outcomes["tune_stopped"], Cancelled)
    assert outcomes["tune_broken"].code == FailureCode.PICTURE_UNREADABLE
    for job in (good, late):
        mine = final_state(store, alone(job, base, store))
        assert_equal(final_state(store, outcomes[job.tune_id]), mine, job.tune_id)


def test_joining_late_and_leaving_early_changes_nobody(base64, store, member, monkeypatch):
    """Short ones leave; one that fits takes the free slot, one that does not makes the bank grow."""
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_LOOKS", 0.0)
    seats: list[tuple[int, int]] = []
    admit = loop.Trainer._admit

    def watched(self, prepared):
        admit(self, prepared)
        seats.append((self.weights.slots, self.weights.bank.rank))

    monkeypatch.setattr(loop.Trainer, "_admit", watched)
    first = [member("short", steps=3), member("long", steps=14, ema_decay=0.8)]
    late = [
        member("fits", steps=4, pictures=3, prior_weight=1.0),
        member("wide", steps=5, rank=8, targets="all", gradient_checkpointing=True),
        member("more", steps=3, seed=9),
    ]
    coming, asked = list(late), []

    def waiting(free: int):
        asked.append(free)
        return [coming.pop(0)] if coming else []

    together = train(first, base64, store, waiting=waiting, places=3)
    assert not coming and max(asked) >= 1 and min(asked) >= 1
    assert seats[0] == (2, 4) and (3, 8) in seats, seats
    assert not base64.denoiser.is_gradient_checkpointing
    assert all(not name.endswith(".base") for name, _ in base64.denoiser.named_modules())
    for job in [*first, *late]:
        job.options.gradient_checkpointing = None
        mine = alone(job, base64, store)
        assert_equal(final_state(store, together[job.tune_id]), final_state(store, mine), job.tune_id)
        # The curve too: nobody's losses end up in somebody else's report.
        curve = [(point[0], pytest.approx(point[1], rel=1e-6)) for point in together[job.tune_id].loss_curve]
        assert mine.loss_curve == curve


def test_more_tunes_than_places_take_turns(base64, store, member):
    jobs = [member(f"t{i}", steps=2 + i) for i in range(4)]
    most: list[int] = []
    original = loop.Trainer._step

    def watched(self):
        most.append(len(self.runs))
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "_step", watched)
        together = train(jobs, base64, store, places=2)
    assert set(most) <= {1, 2} and len(most) < sum(job.total_steps for job in jobs)
    mine = final_state(store, alone(jobs[3], base64, store))
    assert_equal(final_state(store, together["tune_t3"]), mine, "t3")


def test_a_joiner_that_cannot_begin_leaves_the_others_alone(base64, store, member, monkeypatch):
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_LOOKS", 0.0)
    good, broken = member("good", steps=4), member("broken")
    cancelled = member("cancelled", report=Recorder(cancel_at=1))
    store.write_bytes(broken.items[0].key, b"not a picture")
    coming = [[broken, cancelled]]
    outcomes = train([good], base64, store, waiting=lambda free: coming.pop() if coming else [], places=4)
    assert not isinstance(outcomes["tune_broken"], TrainingResult)
    assert not isinstance(outcomes["tune_cancelled"], TrainingResult)
    mine = final_state(store, alone(good, base64, store))
    assert_equal(final_state(store, outcomes["tune_good"]), mine, "good")


def test_masks_weigh_positions_of_the_pictures_that_have_them(base64, store, member, monkeypatch):
    """Ones change nothing; a mask of one half trains on that half; the neighbour without one does not notice."""
    plain, masked = member("plain", steps=4), member("masked", steps=4)
    unmasked = {job.tune_id: final_state(store, alone(job, base64, store)) for job in (plain, masked)}
    original, left = run.prepare, {"weight": 1.0}

    def with_mask(job, *given):
        prepared = original(job, *given)
        if job is masked:
            mask = torch.ones(2, 1, 8, 8)
            mask[..., :4], mask[..., 4:] = left["weight"], 2 - left["weight"]
            prepared.masks = {(64, 64): mask}
        return prepared

    monkeypatch.setattr(run, "prepare", with_mask)
    ones = train([plain, masked], base64, store)
    for job in (plain, masked):
        assert_equal(final_state(store, ones[job.tune_id]), unmasked[job.tune_id], job.tune_id)
    left["weight"] = 0.1
    half = train([plain, masked], base64, store)
    assert_equal(final_state(store, half["tune_plain"]), unmasked["tune_plain"], "plain")
    changed = final_state(store, half["tune_masked"])["values"] - unmasked["tune_masked"]["values"]
    assert changed.abs().max() > 1e-4


def test_a_kind_that_does_not_stack_trains_by_itself_in_the_same_loop(base64, store, member, monkeypatch):
    from dataclasses import replace

    from tunes_dagster.training import methods

    solo = replace(methods.LORA, name="solo", stacks=False)
    monkeypatch.setattr(loop, "method_of", lambda options: solo if options.rank == 5 else methods.LORA)
    beside: list[int] = []
    make = loop.Trainer._admit

    def watched(self, prepared):
        beside.append(len(prepared))
        make(self, prepared)

    monkeypatch.setattr(loop.Trainer, "_admit", watched)
    jobs = [
        member("a", steps=3),
        member("b", steps=3, rank=5),
        member("c", steps=2),
        member("d", steps=2, rank=5),
    ]
    outcomes = train(jobs, base64, store)
    assert beside == [2, 1, 1]
    assert all(isinstance(one, TrainingResult) for one in outcomes.values()), outcomes
    assert hash_of("b") == outcomes["tune_b"].recipe["training"]["seed"]
