"""Files of other programs: every layer at the strength it was trained at, or nothing of it and a name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.support import foreign
from tests.support.families import fresh_pipeline, make_base, random_lora
from tunes_dagster.core.failures import Failure
from tunes_dagster.training.foreign.converting import Converted, convert, networks_of
from tunes_dagster.training.foreign.fitting import fitted
from tunes_dagster.training.foreign.names import Entry, read_names
from tunes_dagster.training.foreign.scales import read_scales

FAMILIES = ("sd15", "sdxl", "flux-dev", "flux2-klein")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Random tiny bases, each made when it is first asked for."""
    made = {}

    def base(name: str):
        if name not in made:
            made[name] = make_base(name, tmp_path_factory.mktemp(name))
        return made[name]

    return base


def taken(base, tensors, header=None, config=None) -> Converted:
    """Take a file in, as far as numbers go."""
    entries = {key: Entry(key, "F32", tuple(value.shape)) for key, value in tensors.items()}
    networks = networks_of(base)
    plan = fitted(read_names(entries.values()), entries, networks, base.entry.base_id)
    return convert(plan, tensors, networks, read_scales(header or {}, config))


def same(made, adapter, within: float = 1e-5) -> None:
    """Say that two adapters add the same to the same layers."""
    # Files have a level in the names of CLIP's layers that some encoders have not.
    ours, theirs = (
        {name.replace(".text_model.", "."): pair for name, pair in foreign.pairs(one).items()}
        for one in (made, adapter)
    )
    assert set(ours) == set(theirs)
    for name, pair in theirs.items():
        wanted = foreign.delta(*pair)
        assert torch.allclose(foreign.delta(*ours[name]), wanted, atol=within * float(wanted.abs().max())), (
            name
        )


def whole(base, seed: int = 1) -> dict[str, torch.Tensor]:
    return random_lora(base, seed) | foreign.text_lora(base, seed)


FORMS = {
    "kohya": (foreign.kohya, ("sd15", "sdxl"), True),
    "kohya of SDXL": (lambda adapter: foreign.kohya_sdxl(adapter, 1), ("sdxl",), True),
    "old diffusers": (foreign.old_diffusers, ("sd15", "sdxl"), True),
    "new diffusers": (foreign.new_diffusers, FAMILIES, True),
    "SimpleTuner": (foreign.simple_tuner, FAMILIES, False),
    "DiffSynth": (foreign.diffsynth, FAMILIES, False),
    "OneTrainer": (foreign.one_trainer, ("sd15", "sdxl", "flux-dev"), False),
}


@pytest.mark.parametrize(
    ("form", "family"), [(form, one) for form, (_, families, _) in FORMS.items() for one in families]
)
def test_a_file_means_what_it_meant_where_it_was_made(bases, form, family):
    make, _, encoders = FORMS[form]
    base = bases(family)
    adapter = whole(base) if encoders else random_lora(base, 1)
    same(taken(base, *make(adapter)).state, adapter)


def test_half_precision_is_taken_as_it_is(bases):
    base = bases("flux-dev")
    adapter = random_lora(base, 1)
    same(taken(base, *foreign.ai_toolkit(adapter)).state, adapter, within=2e-3)


def original_layers(base) -> dict[str, tuple[str, ...]]:
    """What the original checkpoints of FLUX fuse, written down from them."""
    one, two = "transformer.transformer_blocks.0", "transformer.single_transformer_blocks.0"
    names = {
        "double_blocks.0.img_attn.qkv": tuple(f"{one}.attn.to_{x}" for x in "qkv"),
        "double_blocks.0.txt_attn.qkv": tuple(f"{one}.attn.add_{x}_proj" for x in "qkv"),
        "double_blocks.0.img_attn.proj": (f"{one}.attn.to_out.0",),
        "double_blocks.0.txt_attn.proj": (f"{one}.attn.to_add_out",),
    }
    if base.entry.family == "flux":
        return names | {
            "double_blocks.0.img_mlp.0": (f"{one}.ff.net.0.proj",),
            "double_blocks.0.txt_mlp.2": (f"{one}.ff_context.net.2",),
            "single_blocks.0.linear1": (*(f"{two}.attn.to_{x}" for x in "qkv"), f"{two}.proj_mlp"),
            "single_blocks.0.linear2": (f"{two}.proj_out",),
            "single_blocks.0.modulation.lin": (f"{two}.norm.linear",),
        }
    return names | {
        "double_blocks.0.img_mlp.0": (f"{one}.ff.linear_in",),
        "double_blocks.0.txt_mlp.2": (f"{one}.ff_context.linear_out",),
        "single_blocks.0.linear1": (f"{two}.attn.to_qkv_mlp_proj",),
        "single_blocks.0.linear2": (f"{two}.attn.to_out",),
        "img_in": ("transformer.x_embedder",),
        "final_layer.linear": ("transformer.proj_out",),
    }


@pytest.mark.parametrize("family", ["flux-dev", "flux2-klein"])
@pytest.mark.parametrize("dotted", [True, False], ids=["ai-toolkit", "sd-scripts and musubi"])
def test_layers_of_the_original_checkpoint_are_taken_apart(bases, family, dotted):
    base = bases(family)
    adapter, names = random_lora(base, 3), original_layers(base)
    tensors, header = foreign.fused(adapter, "diffusion_model." if dotted else "lora_unet_", names, dotted)
    expected = {}
    for ours in names.values():
        for name in ours:
            expected[f"{name}.lora_A.weight"] = adapter[f"{ours[0]}.lora_A.weight"]
            expected[f"{name}.lora_B.weight"] = adapter[f"{name}.lora_B.weight"]
    same(taken(base, tensors, header).state, expected)


def test_diffsynths_names_of_flux_are_taken(bases):
    base = bases("flux-dev")
    adapter = random_lora(base, 3)
    one, two = "transformer.transformer_blocks.0", "transformer.single_transformer_blocks.0"
    names = {
        "blocks.0.attn.a_to_qkv": tuple(f"{one}.attn.to_{x}" for x in "qkv"),
        "blocks.0.attn.b_to_qkv": tuple(f"{one}.attn.add_{x}_proj" for x in "qkv"),
        "blocks.0.attn.b_to_out": (f"{one}.attn.to_add_out",),
        "blocks.0.ff_a.0": (f"{one}.ff.net.0.proj",),
        "blocks.0.norm1_b.linear": (f"{one}.norm1_context.linear",),
        "single_blocks.0.to_qkv_mlp": (*(f"{two}.attn.to_{x}" for x in "qkv"), f"{two}.proj_mlp"),
        "single_blocks.0.proj_out": (f"{two}.proj_out",),
        "single_blocks.0.norm.linear": (f"{two}.norm.linear",),
    }
    tensors, _ = foreign.fused(adapter, "", names, True)
    tensors = {key.replace(".weight", ".default.weight"): value for key, value in tensors.items()}
    assert len(foreign.pairs(taken(base, tensors).state)) == sum(map(len, names.values()))


def test_the_last_modulation_of_flux_lies_the_other_way_round(bases):
    base = bases("flux-dev")
    out, width = base.denoiser.norm_out.linear.weight.shape
    a, b = torch.randn(2, width), torch.randn(out, 2)
    name = "diffusion_model.final_layer.adaLN_modulation.1"
    made = taken(base, {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}).state
    ours = foreign.delta(*foreign.pairs(made)["transformer.norm_out.linear"])
    theirs = foreign.delta(a, b)
    assert torch.allclose(ours, torch.cat([theirs[out // 2 :], theirs[: out // 2]]))


@pytest.mark.parametrize(
    ("form", "family"),
    [("kohya", "sd15"), ("kohya of SDXL", "sdxl"), ("old diffusers", "sd15"), ("new diffusers", "flux-dev")],
)
def test_it_is_what_diffusers_own_loader_makes_of_the_file(bases, form, family, tmp_path):
    """Diffusers' reading is the twin: the same file into a stock pipeline, ours into another one."""
    base, (make, _, encoders) = bases(family), FORMS[form]
    adapter = random_lora(base, 1, targets="attention", strength=0.2)
    adapter |= foreign.text_lora(base, 1) if encoders and family != "flux-dev" else {}
    tensors, header = make(adapter)
    seen = []
    for number, (found, fields) in enumerate([(tensors, header), (taken(base, tensors, header).state, {})]):
        file = tmp_path / f"{number}.safetensors"
        save_file({key: value.contiguous() for key, value in found.items()}, file, fields or None)
        pipeline = fresh_pipeline(base)
        pipeline.load_lora_weights(str(tmp_path), weight_name=file.name, adapter_name="theirs")
        pipeline.set_progress_bar_config(disable=True)
        seen.append(picture(pipeline, base))
    assert np.abs(seen[0] - picture(fresh_pipeline(base), base)).mean() > 1e-3
    assert np.abs(seen[0] - seen[1]).max() < 2e-3


def picture(pipeline, base) -> np.ndarray:
    return pipeline(
        **base.stock_arguments("a photo of ohwx woman", "", 2.0),
        num_inference_steps=2,
        height=64,
        width=64,
        generator=torch.Generator("cpu").manual_seed(3),
        output_type="np",
    ).images[0]


def lycoris(base, kind: str, rank: int = 2, alpha: float = 1.0):
    """Return a LoHa or LoKr of two layers, one a convolution, with the weights that LyCORIS computes from it."""
    generator = torch.Generator().manual_seed(5)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / 4

    made, wanted = {}, {}
    modules = dict(base.denoiser.named_modules())
    for name in ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1"):
        weight = modules[name].weight
        out, inside = weight.shape[0], weight[0].numel()
        key = f"lora_unet_{name.replace('.', '_')}"
        if kind == "loha":
            parts = {
                "w1_a": drawn(out, rank),
                "w1_b": drawn(rank, inside),
                "w2_a": drawn(out, rank),
                "w2_b": drawn(rank, inside),
            }
            product = (parts["w1_a"] @ parts["w1_b"]) * (parts["w2_a"] @ parts["w2_b"]) * (alpha / rank)
            made |= {f"{key}.hada_{part}": value for part, value in parts.items()}
        else:
            first = drawn(4, 4)
            a, b = drawn(out // 4, rank), drawn(rank, inside // 4)
            second = (a @ b).view(out // 4, weight.shape[1] // 4, *weight.shape[2:])
            product = torch.kron(first.view(4, 4, *(1,) * (weight.ndim - 2)), second) * (alpha / rank)
            made |= {f"{key}.lokr_w1": first, f"{key}.lokr_w2_a": a, f"{key}.lokr_w2_b": b}
        made[f"{key}.alpha"] = torch.tensor(alpha)
        wanted[f"unet.{name}"] = product.view(weight.shape)
    return made, wanted


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_loha_and_lokr_become_the_lora_that_they_are(bases, kind):
    base = bases("sd15")
    tensors, wanted = lycoris(base, kind)
    made = taken(base, tensors)
    found = foreign.pairs(made.state)
    assert set(found) == set(wanted) and not made.notes
    for name, product in wanted.items():
        assert torch.allclose(foreign.delta(*found[name]).float(), product, atol=2e-5), name


def test_a_lokr_of_whole_factors_has_no_rank_to_divide_by(bases):
    base = bases("sd15")
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    out, width = dict(base.denoiser.named_modules())[name].weight.shape
    first, second = torch.randn(2, 2), torch.randn(out // 2, width // 2)
    key = f"lycoris_{name.replace('.', '_')}"
    made = taken(
        base, {f"{key}.lokr_w1": first, f"{key}.lokr_w2": second, f"{key}.alpha": torch.tensor(1e10)}
    )
    ((a, b),) = foreign.pairs(made.state).values()
    wanted = torch.kron(first, second)
    assert (foreign.delta(a, b).float() - wanted).norm() < 1e-3 * wanted.norm()


def test_what_a_lora_cannot_hold_of_a_loha_is_said_or_refused(monkeypatch):
    from tunes_dagster.training.foreign import lycoris as made

    monkeypatch.setattr(made, "MOST_RANK", 40)
    parts = {
        name: torch.randn(*shape) for name, shape in {"hada_w1_a": (96, 8), "hada_w1_b": (8, 96)}.items()
    }
    parts |= {"hada_w2_a": torch.randn(96, 8), "hada_w2_b": torch.randn(8, 96)}
    a, b, lost = made.loha_pair(parts)
    wanted = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    assert len(a) == 40 and lost == pytest.approx(float((b @ a - wanted).norm() / wanted.norm()), rel=1e-3)


def test_a_dora_of_others_keeps_its_magnitudes(bases):
    base = bases("sd15")
    adapter = random_lora(base, 1, targets="attention")
    tensors, _ = foreign.kohya(adapter)
    for name, (_, b) in foreign.pairs(adapter).items():
        tensors[f"lora_unet_{name.removeprefix('unet.').replace('.', '_')}.dora_scale"] = (
            torch.rand(len(b), 1) + 0.5
        )
    made = taken(base, tensors)
    assert made.dora
    key = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    ours = made.state[f"unet.{key}.lora_magnitude_vector"]
    assert torch.equal(ours, tensors[f"lora_unet_{key.replace('.', '_')}.dora_scale"].flatten())


def _doubled(tensors):
    return tensors | {key.replace("lora_unet_", "lycoris_"): value for key, value in tensors.items()}


def _scaled(tensors, ending: str, factor: float):
    return {key: value * factor if key.endswith(ending) else value for key, value in tensors.items()}


def _with_scales_of_inputs(tensors):
    down = ".lora_down.weight"
    found = {key.removesuffix(down): value for key, value in tensors.items() if key.endswith(down)}
    return tensors | {f"{layer}.dora_scale": torch.ones(1, value.shape[1]) for layer, value in found.items()}


WRONG = {
    "lora_unet_made_up": lambda t: t | {"lora_unet_made_up.lora_down.weight": torch.ones(4, 8)},
    "lora_unet_conv_in.diff": lambda t: t | {"lora_unet_conv_in.diff": torch.ones(4)},
    "only down": lambda t: {k: v for k, v in t.items() if not k.endswith("attn1_to_q.lora_up.weight")},
    "makes": lambda t: {k: v[:, :-1] if k.endswith("lora_down.weight") else v for k, v in t.items()},
    "not finite": lambda t: _scaled(t, "up.weight", float("nan")),
    "nothing but zeros": lambda t: _scaled(t, ".alpha", 0),
    "no strength": lambda t: _scaled(t, ".alpha", 1e9),
    "of the inputs": _with_scales_of_inputs,
    "no adapter": lambda t: {},
    "twice": _doubled,
}


@pytest.mark.parametrize("named", WRONG)
def test_nothing_is_half_applied(bases, named):
    base = bases("sd15")
    tensors, header = foreign.kohya(random_lora(base, 1, targets="attention"))
    taken(base, tensors, header)
    with pytest.raises(Failure, match=named):
        taken(base, WRONG[named](tensors), header)


def test_a_file_for_another_base_is_refused_by_its_layers(bases):
    tensors, header = foreign.kohya(random_lora(bases("sd15"), 1))
    with pytest.raises(Failure, match="none of random-flux2-klein"):
        taken(bases("flux2-klein"), tensors, header)


def test_pefts_own_files_take_their_strength_from_beside_them(bases):
    base = bases("flux-dev")
    adapter = random_lora(base, 1)
    tensors, config = foreign.peft_own(adapter)
    same(taken(base, tensors, config=json.loads(json.dumps(config))).state, adapter)
    entries = [Entry(key, "F32", tuple(value.shape)) for key, value in tensors.items()]
    assert read_names(entries).bare and not read_scales({}).told and read_scales({}, config).told


def test_alphas_by_pattern_and_rslora_are_read_as_peft_does():
    config = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"attn2.to_v": 2}, "use_rslora": True}
    scales = read_scales({"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in config.items()})})
    assert scales.of("unet", "down.attn1.to_v", 4) == 4 and scales.of("unet", "down.attn2.to_v", 4) == 1
    assert scales.of("text_encoder", "layers.0", 4) == 1
    with pytest.raises(Failure, match="cannot be read"):
        read_scales({"lora_adapter_metadata": "{"})


def test_words_beside_an_adapter_are_taken_for_every_encoder(bases):
    base = bases("sdxl")
    adapter = random_lora(base, 1, targets="attention")
    widths = networks_of(base).words
    tensors, header = foreign.one_trainer(adapter)
    words = {name: torch.randn(2, width) for name, width in widths.items()}
    bundled = {f"bundle_emb.ohwx.{name}": value for name, value in words.items()}
    made = taken(base, tensors | bundled, header)
    assert made.word == "ohwx" and all(torch.equal(made.words[name], value) for name, value in words.items())
    alone = taken(base, words)
    assert not alone.state and set(alone.words) == set(widths) and alone.word == ""
    with pytest.raises(Failure, match="without vectors for clip_g"):
        taken(base, tensors | {"bundle_emb.ohwx.clip_l": words["clip_l"]})
    with pytest.raises(Failure, match="2 words"):
        taken(base, tensors | bundled | {"bundle_emb.other.clip_l": words["clip_l"]})


def test_a_word_of_a_textual_inversion_is_taken(bases, tmp_path: Path):
    base = bases("sd15")
    (width,) = networks_of(base).words.values()
    vector = torch.randn(width)
    made = taken(base, {"<cat-toy>": vector})
    assert made.word == "cat-toy" and torch.equal(made.words["clip_l"][0], vector)


def test_a_file_with_a_strength_of_its_own_is_not_rendered_as_one_of_ours(tmp_path: Path):
    """Alpha 32 at rank 4 would come out at an eighth."""
    from tunes_dagster.core.store import Store
    from tunes_dagster.rendering.loras import read_weights

    pair = {"unet.a.lora_A.weight": torch.ones(4, 8), "unet.a.lora_B.weight": torch.ones(8, 4)}
    save_file(pair, tmp_path / "ours.safetensors")
    told = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 32, "unet.r": 4})}
    save_file(pair, tmp_path / "theirs.safetensors", told)
    assert set(read_weights(Store(tmp_path), "ours.safetensors").state) == set(pair)
    with pytest.raises(Failure, match="tunes import"):
        read_weights(Store(tmp_path), "theirs.safetensors")
