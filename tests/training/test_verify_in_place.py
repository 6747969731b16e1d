"""Verification on the tensors that are loaded: nothing is held twice, and the base is afterwards what it was before."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from tests.support.families import CASES, entry_of, fresh_pipeline, make_base
from tests.support.single_files import write_sd15
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.families.base import load_family
from tunes_dagster.families.loading import Placement, placed
from tunes_dagster.training import loop, words
from tunes_dagster.training.jobs import TrainingResult
from tunes_dagster.training.layouts import Files
from tunes_dagster.training.stock import stock_over
from tunes_dagster.training.verify import verify

PROMPT = "a photo of ohwx woman"
KINDS = {
    "lora": {},
    "dora": {"dora": True},
    "pti": {"kind": "pti"},
    "checkpoint": {"kind": "checkpoint", "learning_rate": 1e-3},
}
SOME = [
    ("sd15", "dora"),
    ("sdxl", "pti"),
    ("sdxl", "checkpoint"),
    ("flux-dev", "pti"),
    ("flux2-klein", "lora"),
]
# A stock pipeline keeps an (empty) register of caches on a transformer from its first call on.
REGISTER = "_diffusers_hook"
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Return a function that makes a case once and keeps it."""
    made = {}

    def get(name: str):
        if name not in made:
            made[name] = make_base(name, tmp_path_factory.mktemp("bases") / name)
        return made[name]

    return get


def trained(base, store, job) -> TrainingResult:
    result = loop.train([job], base, store)[job.tune_id]
    assert isinstance(result, TrainingResult), result
    return result


def files_of(result: TrainingResult) -> Files:
    return Files(result.weights_key, result.kohya_key, result.pipeline_key)


def networks(pipeline) -> dict[str, nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def everything(base) -> dict:
    """All that could be told from outside about a base: objects, classes, hooks, flags, numbers and where they lie."""
    pipeline, seen = base.pipeline(), {}
    for part, network in networks(pipeline).items():
        for name, module in network.named_modules(prefix=part, remove_duplicate=False):
            flags = {key: value for key, value in vars(module).items() if isinstance(value, bool | int | str)}
            hooks = [list(getattr(module, which).values()) for which in HOOKS]
            seen[name] = (
                id(module),
                type(module),
                sorted(vars(module).keys() - {REGISTER}),
                flags,
                hooks,
                id(vars(module).get("forward")),
            )
        for kind in ("parameters", "buffers"):
            for name, value in getattr(network, f"named_{kind}")(prefix=part):
                where = (
                    id(value),
                    value.data_ptr(),
                    value.dtype,
                    value.device,
                    value.stride(),
                    value.requires_grad,
                )
                seen[kind, name] = (*where, value.detach().clone())
        seen[part, "config"] = str(network.config)
    for part, value in pipeline.components.items():
        if hasattr(value, "get_vocab"):
            seen[part, "vocabulary"] = id(value), value.get_vocab()
    seen["pipeline"] = id(pipeline), sorted(vars(pipeline)), dict(pipeline.config), id(pipeline.scheduler)
    seen["spoken"] = dict(base.spoken)
    return seen


def assert_same(before: dict, after: dict) -> None:
    assert before.keys() == after.keys()
    for key, value in before.items():
        if isinstance(value, tuple) and isinstance(value[-1], torch.Tensor):
            assert value[:-1] == after[key][:-1] and torch.equal(value[-1], after[key][-1]), key
        else:
            assert value == after[key], key


@pytest.mark.parametrize(("name", "kind"), SOME)
def test_a_base_is_bit_for_bit_what_it_was_before(bases, store, make_job, name, kind):
    base = bases(name)
    result = trained(base, store, make_job(steps=4, alpha=16.0, rank=4, **KINDS[kind]))
    with words.speaking(
        base, store, result.weights_key
    ):  # its words are in the vocabulary while the run lasts
        pass
    before = everything(base)
    assert verify(files_of(result), PROMPT, base, store).passed
    assert_same(before, everything(base))


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "flux2-dev"])
def test_not_one_tensor_is_held_twice(bases, name):
    base = bases(name)
    own, stock = networks(base.pipeline()), networks(stock_over(base))
    assert own.keys() == stock.keys()
    for part, network in stock.items():
        pairs = zip(network.state_dict().items(), own[part].state_dict().items(), strict=True)
        for (key, value), (same, theirs) in pairs:
            assert key == same and value.data_ptr() == theirs.data_ptr(), (part, key)
        assert not {id(m) for m in network.modules()} & {id(m) for m in own[part].modules()}


@pytest.mark.parametrize("name", CASES)
def test_it_renders_what_a_pipeline_of_its_own_renders(bases, name):
    base = bases(name)
    arguments = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np"}
    one, other = (
        pipeline(
            **base.stock_arguments(PROMPT, "", 2.0), **arguments, generator=torch.Generator().manual_seed(1)
        ).images
        for pipeline in (stock_over(base), fresh_pipeline(base))
    )
    assert (one == other).all()


def test_words_that_others_taught_the_base_are_not_in_it(bases, store, make_job):
    base = bases("flux-dev")
    trained(base, store, make_job("other", kind="pti", steps=2))
    assert base.untaught
    plain, stock = fresh_pipeline(base), stock_over(base)
    for part in ("tokenizer", "tokenizer_2"):
        assert getattr(stock, part).get_vocab() == getattr(plain, part).get_vocab()
    # T5 has rows to spare, which words are written to.
    known = len(plain.text_encoder.get_input_embeddings().weight)
    assert (
        stock.text_encoder.config.vocab_size == known == len(stock.text_encoder.get_input_embeddings().weight)
    )
    for mine, theirs in zip(
        stock.encode_prompt(PROMPT, None), plain.encode_prompt(PROMPT, None), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_a_tune_that_ends_before_its_cohort_is_verified_like_one_alone(bases, store, make_job):
    """Its verification starts while the others' adapters are on, routed as in their last step."""
    base, seen = bases("sdxl"), []

    def ended(tune_id, outcome):
        assert isinstance(outcome, TrainingResult), outcome
        if not seen:
            state = everything(base)
            seen.append((outcome, verify(files_of(outcome), PROMPT, base, store)))
            assert_same(state, everything(base))

    jobs = [make_job("one", steps=2), make_job("two", steps=4), make_job("three", steps=4)]
    loop.train(jobs, base, store, on_finished=ended)
    ((result, together),) = seen
    assert result.tune_id == "tune_one" and together.passed
    assert verify(files_of(result), PROMPT, base, store) == together


def test_a_file_that_breaks_diffusers_loader_breaks_no_base(bases, store, make_job):
    from safetensors.torch import load, save

    base = bases("sdxl")
    result = trained(base, store, make_job(steps=2))
    state = load(store.read_bytes(result.kohya_key))
    last = max(key for key in state if key.endswith("lora_up.weight"))
    state[last] = state[last][:-1]
    store.write_bytes(result.kohya_key, save(state))
    before = everything(base)
    with pytest.raises(RuntimeError, match="size mismatch"):
        verify(files_of(result), PROMPT, base, store)
    assert_same(before, everything(base))


def test_a_pipeline_that_casts_its_vae_does_not_cast_the_bases(tmp_path, store, make_job, monkeypatch):
    """What that of SDXL does on Apple's GPUs."""
    base = make_base("sdxl", tmp_path / "base", "bfloat16")
    result = trained(base, store, make_job(steps=2))
    before = everything(base)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert verify(files_of(result), PROMPT, base, store).passed
    assert base.pipeline().vae.dtype == torch.float32
    assert_same(before, everything(base))


def test_a_whole_network_is_loaded_where_the_bases_lay(bases, store, make_job, monkeypatch):
    """On a device there is one denoiser at a time, and never a second text encoder or VAE."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    base = bases("sdxl")
    result = trained(base, store, make_job(steps=2, **KINDS["checkpoint"]))
    real = UNet2DConditionModel.from_pretrained.__func__
    lent = []

    def watched(cls, *arguments, **more):
        loan = [one for one in gc.get_objects() if type(one).__name__ == "Loan"]
        lent.append(any(one._devices for one in loan))
        return real(cls, *arguments, **more)

    def refused(*arguments, **more):
        raise AssertionError("loaded twice")

    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", classmethod(watched))
    for kind in (AutoencoderKL, CLIPTextModel):
        monkeypatch.setattr(kind, "from_pretrained", refused)
    assert verify(files_of(result), PROMPT, base, store).passed
    assert lent == [True]


def test_an_exported_pipeline_with_another_vae_is_named(bases, store, make_job):
    base = bases("sdxl")
    result = trained(base, store, make_job(steps=2, **KINDS["checkpoint"]))
    key = f"{result.pipeline_key}/vae/diffusion_pytorch_model.safetensors"
    data = bytearray(store.read_bytes(key))
    data[-1] ^= 1
    store.write_bytes(key, bytes(data))
    with pytest.raises(Failure) as raised:
        verify(files_of(result), PROMPT, base, store)
    assert raised.value.code == FailureCode.WEIGHTS_UNUSABLE
    assert "vae/diffusion_pytorch_model.safetensors" in raised.value.message


def test_a_whole_network_on_a_single_file_is_exported_from_what_is_loaded(tmp_path, store, make_job):
    """The rest of its pipeline is written without the words that other tunes have taught the base."""
    from transformers import CLIPTokenizer

    path = write_sd15(make_base("sd15", tmp_path / "base").pipeline(), tmp_path / "sd15.safetensors")
    entry = entry_of("sd15", path).model_copy(update={"components": str(tmp_path / "base")})
    base = load_family(entry, path, dtype="float32")
    trained(base, store, make_job("words", kind="pti", steps=2))
    before = everything(base)
    result = trained(base, store, make_job(steps=2, **KINDS["checkpoint"]))
    assert verify(files_of(result), PROMPT, base, store).passed
    assert_same(before, everything(base))
    with store.local_folder(result.pipeline_key) as folder:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        assert len(tokenizer) == len(base.untaught["clip_l"][0]) < len(base.pipeline().tokenizer)


@pytest.mark.parametrize("kind", ["lora", "pti", "checkpoint"])
def test_networks_that_come_and_go_are_verified_where_they_lie(tmp_path, store, make_job, kind):
    """Offloaded networks move, so both see them move: tensors are shared, and the base works as before."""
    with placed(Placement(offload=True)):
        base = make_base("sdxl", tmp_path / "base")
        result = trained(base, store, make_job(steps=4, alpha=16.0, rank=4, **KINDS[kind]))
        numbers = {
            (part, name): value.clone()
            for part, network in networks(base.pipeline()).items()
            for name, value in network.state_dict().items()
        }
        assert verify(files_of(result), PROMPT, base, store).passed
        again = trained(base, store, make_job("again", steps=1, **KINDS[kind]))
        assert verify(files_of(again), PROMPT, base, store).finite
    for part, network in networks(base.pipeline()).items():
        for name, value in network.state_dict().items():
            before = numbers[part, name]
            assert torch.equal(value[: len(before)] if value.ndim else value, before), (part, name)
