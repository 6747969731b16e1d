"""The processes that `benchmarks/train.py` measures: ours, a plain loop, diffusers' own script.

    python -m benchmarks.train_workers ours|loaded-once|plain|script --folder WORK …

Each prints one JSON line: `training`, the seconds from the loaded base to the written weights, and `training_cpu`,
the CPU seconds in between.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

PICTURES = 8
LEARNING_RATE = 1e-4


def main() -> None:
    """Run one worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("worker", choices=["ours", "loaded-once", "plain", "script"])
    parser.add_argument("--base", default="tiny-sdxl")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tunes", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first tune")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--script", type=Path)
    arguments = parser.parse_args()
    worker = {"ours": ours, "loaded-once": ours, "plain": plain, "script": script}[arguments.worker]
    print(json.dumps(worker(arguments)))


def subject(number: int) -> list[tuple[Any, str]]:
    """Return the (picture, caption) pairs of a tune; every tune has its own."""
    from tunes_dagster.tiny.world.subjects import FIDELITY, draw_subject

    return draw_subject(FIDELITY[number % len(FIDELITY)], PICTURES, seed=100 + number, token="ohwx")


def load(arguments: argparse.Namespace) -> Any:
    """Load the base."""
    from tunes_dagster.families.base import load_family
    from tunes_dagster.families.catalog import load_catalog

    entry = load_catalog().entries[arguments.base]
    return load_family(entry, entry.location(Path("bases")), arguments.device)


def clocks() -> tuple[float, float]:
    """Return the time and the CPU seconds of this process."""
    return time.perf_counter(), time.process_time()


def taken(since: tuple[float, float], device: str) -> dict[str, float]:
    """Return what passed since `clocks`, and the peak memory of a GPU."""
    import torch

    wall, cpu = (now - then for now, then in zip(clocks(), since, strict=True))
    gpu = {"gpu_peak": torch.cuda.max_memory_allocated()} if device.startswith("cuda") else {}
    return {"training": wall, "training_cpu": cpu, **gpu}


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train tunes with the product's loop: together, or one after another for `loaded-once`."""
    from tunes_dagster.core.recipe import TrainingOptions
    from tunes_dagster.core.store import Store
    from tunes_dagster.training.jobs import TrainExample, TrainingResult, TuneJob
    from tunes_dagster.training.loop import train

    store = Store(arguments.folder / "store")
    side = 0
    jobs = []
    for number in range(arguments.first, arguments.first + arguments.tunes):
        items = []
        for picture, caption in subject(number):
            side = picture.width
            items.append(
                TrainExample(key=store.write_blob(png(picture), ".png"), caption=caption, bucket=picture.size)
            )
        options = TrainingOptions(
            steps=arguments.steps,
            rank=arguments.rank,
            learning_rate=LEARNING_RATE,
            lr_schedule="constant",
            warmup_steps=0,
            batch_size=1,
            resolution=side,
            targets="attention",
            caption_dropout=0.0,
            min_snr_gamma=0.0,
            prior_weight=0.0,
            checkpoint_every=arguments.steps,
            seed=number,
        )
        jobs.append(
            TuneJob(
                tune_id=f"tune_{number}",
                options=options,
                items=items,
                token="ohwx",
                class_name="thing",
                out_prefix=f"tunes/{number}",
            )
        )
    base = load(arguments)
    started = clocks()
    cohorts = [[job] for job in jobs] if arguments.worker == "loaded-once" else [jobs]
    for cohort in cohorts:
        for outcome in train(cohort, base, store).values():
            if not isinstance(outcome, TrainingResult):
                raise SystemExit(str(outcome))
    return taken(started, arguments.device)


def png(picture: Any) -> bytes:
    """Return a picture as a PNG file."""
    import io

    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def plain(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one tune the usual way: peft's LoRA, and pictures and captions encoded in every step."""
    import numpy as np
    import torch
    from diffusers import DDPMScheduler
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    pairs = subject(arguments.first)
    base = load(arguments)
    started = clocks()
    pipeline, device = base.pipeline(), base.device
    unet, vae, scheduler = pipeline.unet, pipeline.vae, DDPMScheduler.from_config(pipeline.scheduler.config)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=arguments.rank, lora_alpha=arguments.rank, target_modules=targets))
    unet.train()
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    torch.manual_seed(0)
    for step in range(arguments.steps):
        picture, caption = pairs[step % len(pairs)]
        pixels = (
            torch.from_numpy(np.asarray(picture.convert("RGB"))).permute(2, 0, 1)[None].float() / 127.5 - 1
        )
        with torch.no_grad():
            hidden, _, pooled, _ = pipeline.encode_prompt([caption], do_classifier_free_guidance=False)
            latents = vae.encode(pixels.to(device, vae.dtype)).latent_dist.sample()
            latents = latents.to(unet.dtype) * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (1,), device=device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        size = torch.tensor(
            [[picture.height, picture.width, 0, 0, picture.height, picture.width]], device=device
        )
        said = unet(
            noisy,
            timesteps,
            hidden,
            added_cond_kwargs={"time_ids": size, "text_embeds": pooled},
            return_dict=False,
        )[0]
        velocity = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
        loss = torch.nn.functional.mse_loss(said.float(), target.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss.detach().item()
    state = {name: value.contiguous() for name, value in get_peft_model_state_dict(unet).items()}
    save_file(state, arguments.folder / "plain.safetensors")
    return taken(started, arguments.device)


def script(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run diffusers' own script on the same pictures and captions, as from the command line."""
    from benchmarks.script_runner import run_script
    from tunes_dagster.families.catalog import load_catalog

    entry = load_catalog().entries[arguments.base]
    data = arguments.folder / "data"
    data.mkdir()
    pairs = subject(arguments.first)
    rows = []
    for number, (picture, caption) in enumerate(pairs):
        picture.save(data / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": caption}))
    (data / "metadata.jsonl").write_text("\n".join(rows))
    run_script(
        arguments.script,
        [
            "--pretrained_model_name_or_path",
            str(entry.location(Path("bases"))),
            "--dataset_name",
            str(data),
            "--image_column",
            "image",
            "--caption_column",
            "text",
            "--instance_prompt",
            pairs[0][1],
            "--output_dir",
            str(arguments.folder / "out"),
            "--resolution",
            str(pairs[0][0].width),
            "--train_batch_size",
            "1",
            "--max_train_steps",
            str(arguments.steps),
            "--rank",
            str(arguments.rank),
            "--learning_rate",
            str(LEARNING_RATE),
            "--lr_scheduler",
            "constant",
            "--lr_warmup_steps",
            "0",
            "--mixed_precision",
            "no",
            "--seed",
            "0",
            "--checkpointing_steps",
            "1000000",
        ],
    )
    if not (arguments.folder / "out" / "pytorch_lora_weights.safetensors").is_file():
        raise SystemExit("The script wrote no weights.")
    return {"python": sys.version.split()[0]}


if __name__ == "__main__":
    main()
