"""Speed of a mixed batch against the usual ways of rendering the same prompts with stock diffusers.

    python -m benchmarks.render [--quick] [--rounds 3]
    python -m benchmarks.render --device cuda --full-size sdxl|flux [--steps 20]

32 prompts over 8 tunes (4 each), and over 32 tunes (1 each), on the embedded base, already loaded; every way makes the
same pictures (same prompts, seeds, steps, guidance, sampler) as PIL pictures in memory, with LoRA files read from disk:

    mixed      `rendering.renderer`'s own denoising and decoding: prompts of all tunes in one forward
    usual      for each tune: load_lora_weights, the pipeline once per prompt, unload
    grouped    for each tune: hot-swap its LoRA (`load_lora_weights(hotswap=True)`), one call with all its prompts

Rivals run in a pipeline of their own under `torch.inference_mode`, progress bars off, and give PIL pictures as `mixed`.
Ways take turns in every round and each is given by its fastest round; before timing, the pictures are compared. The
last line is one JSON object. `--clock cpu` counts processor time instead, for machines that do other work as well.

With `--full-size` the base has the released size with random weights: no download, no meaning in the pictures, the same
arithmetic; the share of the physical limit is then given (`--limit` TFLOP/s, 790 for an H200).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunes_dagster.families.catalog import load_catalog

WORDS = ("man", "woman", "dog", "cat", "mug", "car", "robot", "house")
PLACES = ("on the beach", "in the kitchen", "on a street", "in the snow")


@dataclass(frozen=True)
class Case:
    """One prompt of the benchmark."""

    text: str
    seed: int
    tune: int


@dataclass
class Bench:
    """Everything loaded once.

    Attributes:
        base: Our loaded base.
        pipeline: A stock pipeline with weights of its own.
        files: LoRA files, one per tune, in diffusers layout.
        steps: Denoising steps.
        guidance: Guidance scale.
        side: Pixels.
        most: Pictures per forward at most; None lets memory decide.
    """

    base: Any
    pipeline: Any
    files: list[Path]
    steps: int
    guidance: float
    side: int
    most: int | None = None
    clock: Callable[[], float] = time.perf_counter


def cases(tunes: int, prompts: int = 32) -> list[Case]:
    """Return the prompts, those of one tune side by side."""
    each = prompts // tunes
    return [
        Case(f"a photo of ohwx {WORDS[t % 8]} {PLACES[i % 4]}", 100 + t * each + i, t)
        for t in range(tunes)
        for i in range(each)
    ]


def usual(bench: Bench, work: Sequence[Case]) -> list[np.ndarray]:
    """Render the way that tutorials show: load a LoRA, render its prompts one by one, unload it."""
    pictures = []
    for tune in dict.fromkeys(case.tune for case in work):
        bench.pipeline.load_lora_weights(str(bench.files[tune]), adapter_name="tune")
        for case in (one for one in work if one.tune == tune):
            pictures += _call(bench, [case])
        bench.pipeline.unload_lora_weights()
    return pictures


def grouped(bench: Bench, work: Sequence[Case]) -> list[np.ndarray]:
    """Render the best way that stock diffusers has: hot-swapped LoRAs, all prompts of a tune in one call."""
    pictures = []
    order = list(dict.fromkeys(case.tune for case in work))
    for number, tune in enumerate(order):
        bench.pipeline.load_lora_weights(str(bench.files[tune]), adapter_name="tune", hotswap=number > 0)
        pictures += _call(bench, [one for one in work if one.tune == tune])
    bench.pipeline.unload_lora_weights()
    return pictures


def _call(bench: Bench, work: Sequence[Case]) -> list[np.ndarray]:
    import torch

    arguments = bench.base.stock_arguments("", "", bench.guidance)
    arguments["prompt"] = [case.text for case in work]
    if arguments.get("negative_prompt") is not None:
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(work)
    images = bench.pipeline(
        **arguments,
        num_inference_steps=bench.steps,
        width=bench.side,
        height=bench.side,
        generator=[torch.Generator("cpu").manual_seed(case.seed) for case in work],
    ).images
    return [np.asarray(image) for image in images]


def mixed(bench: Bench, work: Sequence[Case]) -> list[np.ndarray]:
    """Render as a render batch does: read every file, attach all tunes, one forward for all rows that fit."""
    from PIL import Image

    from tunes_dagster.core.store import Store
    from tunes_dagster.rendering import denoise as dn
    from tunes_dagster.rendering.loras import LoraShelf, LoraUse
    from tunes_dagster.rendering.pictures import Picture, Shape
    from tunes_dagster.rendering.texts import TextCache

    base = bench.base
    base.__dict__.pop("_rendered_texts", None)  # every round encodes its texts, as the rivals do
    order = list(dict.fromkeys(case.tune for case in work))
    uses = {tune: (LoraUse(bench.files[tune].name),) for tune in order}
    shelf = LoraShelf(Store(bench.files[0].parent), uses.values(), base.denoiser)
    guided = base.is_guided(bench.guidance)
    shape = Shape(width=bench.side, height=bench.side, steps=bench.steps, scheduler=None, guided=guided)
    texts = TextCache(base)
    pictures = [
        Picture(
            job=i,
            number=0,
            seed=case.seed,
            shape=shape,
            guidance_scale=bench.guidance,
            text=case.text,
            negative="",
            slot=order.index(case.tune),
        )
        for i, case in enumerate(work)
    ]
    made: list[np.ndarray] = []
    with shelf.attached(base.denoiser, [uses[tune] for tune in order]) as bank:
        fit = min(dn.rows_that_fit(base, shape), bench.most or 1 << 20)
        for start in range(0, len(pictures), fit):
            latents = dn.denoise(base, pictures[start : start + fit], texts, bank)
            few = dn.decodes_that_fit(base, shape)
            for first in range(0, len(latents), few):
                pixels, _ = dn.decode(base, latents[first : first + few])
                made += [np.asarray(Image.fromarray(one)) for one in pixels]
    return made


WAYS: dict[str, Callable[[Bench, Sequence[Case]], list[np.ndarray]]] = {
    "mixed": mixed,
    "usual": usual,
    "grouped": grouped,
}


def timed(bench: Bench, work: Sequence[Case], ways: Sequence[str], rounds: int) -> dict[str, float]:
    """Return the seconds of each way's fastest round; ways take turns, so that a busy machine hits all of them."""
    import torch

    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with torch.inference_mode():
        for _ in range(rounds):
            for way in ways:
                _wait(bench)
                began = bench.clock()
                WAYS[way](bench, work)
                _wait(bench)
                seconds[way].append(bench.clock() - began)
    return {way: min(taken) for way, taken in seconds.items()}


def _wait(bench: Bench) -> None:
    import torch

    if bench.base.device.type == "cuda":
        torch.cuda.synchronize()


def compared(bench: Bench, work: Sequence[Case]) -> float:
    """Return the lowest PSNR in dB between the ways' pictures of some prompts."""
    import torch

    with torch.inference_mode():
        pictures = {way: make(bench, work) for way, make in WAYS.items()}
    worst = np.inf
    for way in ("usual", "grouped"):
        for ours, theirs in zip(pictures["mixed"], pictures[way], strict=True):
            error = ((ours.astype(np.float64) - theirs) ** 2).mean()
            worst = min(worst, 10 * np.log10(255**2 / max(error, 1e-9)))
    return float(worst)


def random_loras(base: Any, count: int, folder: Path, rank: int = 16) -> list[Path]:
    """Write LoRAs of the trainer's default targets that change pictures visibly but not beyond recognition."""
    import torch
    from safetensors.torch import save_file

    targets = base.entry.training.get("targets", "attention")
    modules = dict(base.denoiser.named_modules())
    files = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        state = {}
        for name in base.adapter_targets(targets):
            weight = modules[name].weight
            down = torch.randn(rank, *weight.shape[1:], generator=generator) / weight[0].numel() ** 0.5
            up = torch.randn(weight.shape[0], rank, *(1,) * (weight.ndim - 2), generator=generator)
            prefix = f"{base.denoiser_name}.{name}"
            state[f"{prefix}.lora_A.weight"] = down.to(torch.float16)
            state[f"{prefix}.lora_B.weight"] = (up * 0.02).to(torch.float16)
        files.append(folder / f"tune-{number}.safetensors")
        save_file(state, files[-1])
    return files


def embedded(folder: Path, arguments: argparse.Namespace) -> Bench:
    """Return the bench on the embedded base, with the defaults of its catalog entry."""
    import diffusers

    from tunes_dagster.families.base import load_family

    entry = load_catalog().entries[arguments.base]
    base = load_family(entry, entry.location(Path()), arguments.device)
    pipeline = load_family(entry, entry.location(Path()), arguments.device).pipeline()
    pipeline.set_progress_bar_config(disable=True)
    diffusers.utils.logging.set_verbosity_error()
    steps = arguments.steps or int(entry.rendering["steps"])
    files = random_loras(base, 32, folder)
    return Bench(base, pipeline, files, steps, float(entry.rendering["guidance_scale"]), entry.native_size)


def full_size(folder: Path, arguments: argparse.Namespace) -> Bench:
    """Return the bench on a base of a released size with random weights; `tiny-…` is the same in small, for tests."""
    from benchmarks.render_models import random_base

    base, side, guidance = random_base(arguments.full_size, arguments.device, arguments.dtype)
    pipeline = (
        base.pipeline()
    )  # a second copy of FLUX would not leave room for batches; LoRAs come off after each way
    pipeline.set_progress_bar_config(disable=True)
    files = random_loras(base, 32, folder)
    return Bench(base, pipeline, files, arguments.steps or 20, guidance, side, arguments.most)


def forward_flops(bench: Bench) -> float:
    """Return the floating-point operations of one row of one forward of the denoiser, adapters left out."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    base, side = bench.base, bench.side
    text = base.encode_text(["a photo"])
    guidance = torch.tensor([bench.guidance], device=base.device)
    noisy = torch.zeros(1, *base.latent_shape(side, side), device=base.device, dtype=base.dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        base.predict(
            noisy, torch.full((1,), 500, device=base.device), base.with_size(text, side, side, guidance)
        )
    return float(counter.get_total_flops())


def main() -> None:
    """Measure, say what was found, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description="Speed of mixed render batches against stock diffusers.")
    parser.add_argument("--base", default="tiny-sdxl", help="an embedded base of the catalog")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--full-size", default="", help="sdxl, flux; tiny-sdxl, tiny-flux to try the code")
    parser.add_argument("--steps", type=int, default=0, help="denoising steps; 0 takes the base's own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--most", type=int, default=None, help="pictures per forward at most")
    parser.add_argument("--limit", type=float, default=790.0, help="TFLOP/s that the device can reach")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--quick", action="store_true", help="one round of few steps: figures mean little")
    arguments = parser.parse_args()
    os.environ.setdefault(
        "OMP_WAIT_POLICY", "PASSIVE"
    )  # on shared cores, waiting threads would take turns spinning
    if arguments.quick:
        arguments.rounds, arguments.steps = 1, arguments.steps or 4
    with tempfile.TemporaryDirectory() as place:
        bench = (full_size if arguments.full_size else embedded)(Path(place), arguments)
        bench.clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
        print(
            f"{bench.base.entry.base_id}, {bench.side}x{bench.side}, {bench.steps} steps on {bench.base.device}"
        )
        worst = compared(bench, cases(2, 2))
        print(f"the ways agree: lowest PSNR {worst:.1f} dB")
        few, many = cases(8, arguments.prompts), cases(min(32, arguments.prompts), arguments.prompts)
        first = timed(bench, few, ("mixed", "usual", "grouped"), arguments.rounds)
        second = timed(bench, many, ("mixed", "grouped"), arguments.rounds)
        for title, found in (
            (f"8 tunes, {len(few)} prompts", first),
            (f"{len(many)} tunes, 1 prompt each", second),
        ):
            print(f"{title}: " + ", ".join(f"{way} {taken:.2f} s" for way, taken in found.items()))
        result = {
            "mixed_vs_usual": round(first["usual"] / first["mixed"], 2),
            "mixed_vs_grouped_8x4": round(first["grouped"] / first["mixed"], 2),
            "mixed_vs_grouped_32x1": round(second["grouped"] / second["mixed"], 2),
        }
        if arguments.full_size:
            rows = 2 if bench.base.is_guided(bench.guidance) else 1
            work = forward_flops(bench) * rows * bench.steps * len(few) / 1e12
            print(f"{work / first['mixed']:.0f} TFLOP/s in mixed batches, decoding and loading included")
            result["share_of_limit"] = round(work / first["mixed"] / arguments.limit, 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
