"""`python -m factory make|evaluate|sheet`: make the embedded models again, measure them, look at them."""

from __future__ import annotations

import argparse
from pathlib import Path

from factory.make import STEPS, BuildOptions
from tunes_dagster.tiny import BASES, SDXL, UPSCALER, load_base, weights_dir

BUDGETS = (
    "vae",
    "refine",
    "decoder",
    "unet",
    "flux",
    "captioner",
    "scorer",
    "classifier",
    "faces",
    "faceadapter",
    "student",
    "upscaler_vae",
    "upscaler",
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m factory", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="train models from nothing; a run that was stopped goes on")
    make.add_argument("model", nargs="?", default="all", choices=sorted(STEPS))
    make.add_argument(
        "--work", type=Path, default=Path(".tunes/tiny"), help="pictures, latents, checkpoints (4 GB)"
    )
    make.add_argument(
        "--out", type=Path, default=Path(".tunes/tiny/weights"), help="folder for the finished models"
    )
    make.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ...")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--pictures", type=int, default=64_000, help="training pictures to draw")
    make.add_argument(
        "--base-pictures", type=int, default=40_000, help="how many of them the bases learn from"
    )
    make.add_argument(
        "--start",
        type=Path,
        help="folder of finished models whose weights VAE, UNet and text encoders go on from",
    )
    make.add_argument(
        "--latent-channels", type=int, help="channels that the refined VAE grows to; else it keeps its own"
    )
    make.add_argument("--workers", type=int, default=1, help="processes that train a base together (CPU)")
    make.add_argument(
        "--snapshots", default="", help="minutes at which the base is exported early, e.g. 15,40"
    )
    for name in BUDGETS:
        option = name.replace("_", "-")
        make.add_argument(f"--minutes-{option}", type=float, help=f"wall time for the {option}")
        make.add_argument(f"--steps-{option}", type=int, help=f"steps for the {option}, instead of minutes")
    evaluate = commands.add_parser("evaluate", help="how well a base obeys 200 prompts")
    evaluate.add_argument("--base", choices=BASES, default=SDXL)
    evaluate.add_argument("--weights", type=Path, default=weights_dir())
    evaluate.add_argument("--count", type=int, default=200)
    evaluate.add_argument("--steps", type=int, default=25)
    enlarged = commands.add_parser(
        "enlarged", help="how near the upscaler comes to large drawings, beside Lanczos"
    )
    enlarged.add_argument("--weights", type=Path, default=weights_dir())
    enlarged.add_argument("--count", type=int, default=48)
    enlarged.add_argument("--steps", type=int, default=1)
    enlarged.add_argument("--out", type=Path, default=Path("enlarged.png"), help="some of them side by side")
    sheet = commands.add_parser("sheet", help="contact sheets of the drawn world and of the bases' renders")
    sheet.add_argument("--weights", type=Path, default=weights_dir())
    sheet.add_argument("--out", type=Path, default=Path())
    return top


def build_from(options: argparse.Namespace) -> BuildOptions:
    """The build that the options describe."""

    def given(kind: str) -> dict:
        values = {name: getattr(options, f"{kind}_{name}") for name in BUDGETS}
        return {name: value for name, value in values.items() if value is not None}

    return BuildOptions(
        work=options.work,
        out=options.out,
        seed=options.seed,
        device=options.device,
        pictures=options.pictures,
        base_pictures=min(options.base_pictures, options.pictures),
        start=options.start,
        latent_channels=options.latent_channels,
        workers=options.workers,
        minutes=given("minutes"),
        steps=given("steps"),
        snapshot_minutes=tuple(float(m) for m in options.snapshots.split(",") if m),
    )


def main(argv: list[str] | None = None) -> None:
    """Run one command."""
    options = parser().parse_args(argv)
    if options.command == "make":
        STEPS[options.model](build_from(options))
    elif options.command == "evaluate":
        from factory.evaluate import main as evaluate

        evaluate(options.weights, options.count, options.steps, options.base)
    elif options.command == "enlarged":
        from factory.sheets import enlarged_sheet

        enlarged_sheet(options.weights / UPSCALER, options.count, options.steps, options.out)
    else:
        _sheets(options.weights, options.out)


def _sheets(weights: Path, out: Path) -> None:
    from factory.sheets import base_sheet, small_png, world_sheet

    small_png(world_sheet(), out / "world.png")
    print(out / "world.png")
    for name in BASES:
        file = out / ("base.png" if name == SDXL else f"base-{name}.png")
        small_png(base_sheet(load_base(name, weights)), file)
        print(file)


if __name__ == "__main__":
    main()
