"""The stacked layers agree with their slow, obvious twin: peft, one adapter at a time."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.training.adapters import attach, attached, split_state

RANKS = (4, 8, 6)


@pytest.fixture(scope="module")
def states(base64) -> list[dict[str, torch.Tensor]]:
    """Three adapters of different rank over all targets, as peft itself names and shapes them."""
    found = []
    for seed, rank in enumerate(RANKS):
        unet = copy.deepcopy(base64.denoiser)
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=base64.adapter_targets("all")))
        generator = torch.Generator().manual_seed(seed)
        raw = get_peft_model_state_dict(unet)
        found.append(
            {f"unet.{k}": 0.1 * torch.randn(v.shape, generator=generator).double() for k, v in raw.items()}
        )
    return found


@pytest.fixture(scope="module")
def inputs(base64):
    generator = torch.Generator().manual_seed(9)
    noisy = torch.randn(6, 4, 8, 8, generator=generator).double()
    timesteps = torch.randint(0, 1000, (6,), generator=generator)
    text = base64.encode_text([f"row {i}" for i in range(6)])
    return noisy, timesteps, base64.with_size(text, 64, 64)


@pytest.fixture(scope="module")
def by_peft(base64, states, inputs):
    """What each adapter alone says about all rows; -1 is no adapter."""
    noisy, timesteps, conditioning = inputs
    added = {"text_embeds": conditioning["pooled"], "time_ids": conditioning["time_ids"]}
    outputs = {}
    for slot in (-1, 0, 1, 2):
        unet = copy.deepcopy(base64.denoiser)
        if slot >= 0:
            unet.load_lora_adapter(states[slot], prefix="unet")
        with torch.no_grad():
            outputs[slot] = unet(
                noisy, timesteps, encoder_hidden_states=conditioning["hidden"], added_cond_kwargs=added
            ).sample
    return outputs


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([0] * 6, "single"),
        ([2] * 6, "single"),
        ([0, 0, 1, 1, 2, 2], "blocks"),
        ([0, 0, 0, 2, 2, 2], "blocks"),
        ([2, 1, 0, 0, -1, 1], "rows"),
        ([1, -1, -1, -1, -1, -1], "rows"),
        ([-1] * 6, "off"),
    ],
)
def test_mixed_rows_equal_peft_adapter_by_adapter(base64, states, inputs, by_peft, rows, kind):
    with attached(base64.denoiser, states) as bank, torch.no_grad():
        bank.assign(rows)
        assert bank.routing.now.kind == kind
        ours = base64.predict(*inputs)
    expected = torch.stack([by_peft[slot][row] for row, slot in enumerate(rows)])
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    assert kind == "off" or (ours - by_peft[-1]).abs().max() > 0.1


def test_detaching_leaves_the_network_as_it_was(base64, states, inputs, by_peft):
    names = [name for name, _ in base64.denoiser.named_modules()]
    plain = base64.fingerprint()
    with attached(base64.denoiser, states) as bank:
        bank.assign_all(1)
        assert base64._fingerprint(()) == plain
    assert [name for name, _ in base64.denoiser.named_modules()] == names
    with torch.no_grad():
        assert torch.equal(base64.predict(*inputs), by_peft[-1])


def test_a_bank_inside_a_bank_replaces_it_for_the_while(base64, states, inputs, by_peft):
    with attached(base64.denoiser, states[:1]) as outer, torch.no_grad():
        with attached(base64.denoiser, states[1:2]) as inner:
            inner.assign_all(0)
            torch.testing.assert_close(base64.predict(*inputs), by_peft[1])
        outer.assign_all(0)
        torch.testing.assert_close(base64.predict(*inputs), by_peft[0])


def test_a_fresh_adapter_changes_nothing_and_gradients_stay_with_their_slot(base64, inputs):
    names = base64.adapter_targets("all")
    bank = attach(base64.denoiser, names, slots=3, rank=8, dtype=torch.float64)
    try:
        for slot, rank in enumerate(RANKS):
            bank.initialise(slot, rank, 2.0 * rank, names, torch.Generator().manual_seed(slot))
        bank.values.requires_grad_(True)
        bank.assign(None)
        with torch.no_grad():
            plain = base64.predict(*inputs)
        bank.assign([0, 0, 1, 1, 2, 2])
        ours = base64.predict(*inputs)
        torch.testing.assert_close(ours.detach(), plain, rtol=1e-9, atol=1e-12)
        ours[2:4].square().sum().backward()
    finally:
        bank.detach()
    gradient = bank.values.grad
    assert gradient is not None
    assert gradient[1].abs().sum() > 0
    assert not gradient[0].any() and not gradient[2].any()


def test_padding_stays_zero_and_packing_leaves_it_out(base64):
    names = base64.adapter_targets("attention")
    bank = attach(base64.denoiser, names, slots=1, rank=8, dtype=torch.float64)
    bank.detach()
    bank.initialise(0, 4, 4.0, names[:3], torch.Generator().manual_seed(0))
    packed = bank.pack(bank.values[0], 0)
    assert packed.numel() == sum(v.numel() for v in bank.state(0).values())
    other = torch.zeros_like(bank.values[0])
    bank.unpack(packed, other, 0)
    assert torch.equal(other, bank.values[0])
    with pytest.raises(ValueError, match="do not fit"):
        bank.unpack(packed[:-1], other, 0)


def test_import_and_export_are_peft_s_format(base64, states):
    with attached(base64.denoiser, states) as bank:
        for slot, state in enumerate(states):
            back = bank.state(slot, "unet.")
            assert back.keys() == state.keys()
            for key, value in state.items():
                torch.testing.assert_close(back[key].double(), value, rtol=1e-6, atol=1e-7)


def test_scale_is_folded_into_the_export(base64):
    names = base64.adapter_targets("attention")[:2]
    bank = attach(base64.denoiser, names, slots=1, rank=4, dtype=torch.float64)
    bank.detach()
    bank.initialise(0, 4, 8.0, names, torch.Generator().manual_seed(0))
    bank.values[0] += 1
    folded, raw = bank.state(0), bank.state(0, folded=False)
    for key in raw:
        torch.testing.assert_close(folded[key], raw[key] * (2.0 if "lora_B" in key else 1.0))


def test_what_does_not_fit_is_refused_by_name_and_changes_nothing(base64, states):
    with attached(base64.denoiser, states[:1]) as bank:
        before = bank.values.clone()
        strange = {k.replace("down_blocks.1", "down_blocks.7"): v for k, v in states[0].items()}
        with pytest.raises(Failure, match="down_blocks.7") as raised:
            bank.load_slot(0, strange)
        assert raised.value.code == FailureCode.WEIGHTS_UNUSABLE
        with pytest.raises(Failure, match="room for 4"):
            bank.load_slot(0, states[1])
        assert torch.equal(bank.values, before)
    with pytest.raises(Failure, match="no pair"):
        split_state({"unet.a.lora_A.weight": torch.zeros(4, 4)})
    with pytest.raises(Failure, match="no linear or convolution"):
        attach(base64.denoiser, ["nowhere"])


def test_checkpointing_gives_the_same_gradients(base64, states, inputs):
    gradients = []
    for wanted in (False, True):
        with attached(base64.denoiser, states) as bank:
            bank.values.requires_grad_(True)
            bank.assign([0, 0, 1, 1, 2, 2])
            if wanted:
                base64.denoiser.enable_gradient_checkpointing()
            try:
                base64.predict(*inputs).square().mean().backward()
            finally:
                base64.denoiser.disable_gradient_checkpointing()
            gradients.append(bank.values.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
