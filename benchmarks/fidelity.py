"""Measures what a tune has learned: likeness, leak and obedience on subjects that the base has never seen.

    python -m benchmarks.fidelity [--base tiny-flux] [--quick] [--subjects FOLDER] [--together N] [--resume]

trains every subject with the base's default recipe under two seeds, renders, and prints for each: likeness (mean
cosine of the scorer's embeddings to the mean of the held-out pictures) with the token, of the untuned base, and
to the other subjects; the share of renders that are nearest to the right subject; the leak, which is how far
prompts without the token move towards the subject, as a share of the likeness gained with it; and obedience, the
share of attributes asked for beside the subject that a classifier recognises, before and after. Intervals are
95 % bootstrap intervals over tunes. Writes a picture grid and ends with one line of JSON. `--together` trains
several tunes in one forward, which gives each the same weights sooner (and seconds_per_tune its share of the
time); `--resume` goes on where a stopped run was. `--render-on` renders the tunes on the base's few-step sibling, in
its own steps: run once without and then, with `--resume`, once with it, and compare likeness and obedience.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.fidelity_figures import Before, Tune, figures_of, intervals, measure
from benchmarks.fidelity_output import draw_grid, print_table
from benchmarks.subjects import Asked, Subject, drawn_subjects, folder_subjects, obedience_prompts, scenes
from tunes_dagster.core.failures import Failure
from tunes_dagster.core.progress import Silent, format_numbers
from tunes_dagster.core.recipe import RenderSettings, TrainingOptions
from tunes_dagster.core.store import Store
from tunes_dagster.families.catalog import load_catalog


class Loud(Silent):
    """Prints progress sparsely."""

    def __init__(self, name: str) -> None:
        self.name = name

    def step(self, done: int, total: int, **numbers: float) -> None:
        """Print every quarter."""
        if numbers and done % max(1, total // 4) == 0:
            print(f"  {self.name}: step {done} of {total} {format_numbers(numbers)}", flush=True)

    def note(self, message: str) -> None:
        """Print."""
        print(f"  {self.name}: {message}", flush=True)


class Bench:
    """Everything loaded once: base, scorer, classifier, store, and how many of what."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from tunes_dagster.families.base import load_family
        from tunes_dagster.tiny import load_classifier, load_scorer

        self.arguments = arguments
        catalog = load_catalog()
        self.entry = catalog.real(catalog.resolve(arguments.base))
        self.base = load_family(self.entry, arguments.weights or self.entry.location(Path(".tunes/bases")))
        self.sibling = self.base
        if arguments.render_on:
            entry = catalog.real(catalog.resolve(arguments.render_on))
            self.sibling = load_family(entry, entry.location(Path(".tunes/bases")))
        self.scorer, self.classifier = load_scorer(), load_classifier()
        self.out = Path(arguments.out)
        if not arguments.resume:
            shutil.rmtree(self.out, ignore_errors=True)
        self.store = Store(self.out / "store")
        asked = TrainingOptions.model_validate(dict(map(_option, arguments.set)))
        self.options = self.entry.training_options(asked)
        if arguments.quick:
            self.options.steps = min(self.options.steps or 150, 150)

    def train(self, wanted: Sequence[tuple[Subject, int]]) -> list[Tune]:
        """Train (subject, seed) with the default recipe, in one forward; those that are there are only read."""
        from tunes_dagster.training.jobs import TrainingResult
        from tunes_dagster.training.loop import train

        names = [f"{subject.name}-{seed}" for subject, seed in wanted]
        found = {name: self._kept(name) for name in names}
        jobs = [self._job(name, *one) for name, one in zip(names, wanted, strict=True) if found[name] is None]
        began = time.monotonic()
        for name, outcome in (train(jobs, self.base, self.store) if jobs else {}).items():
            if isinstance(outcome, Failure):
                raise outcome
            assert isinstance(outcome, TrainingResult)
            outcome.seconds = (time.monotonic() - began) / len(jobs)
            self.store.write_json(f"tunes/{name}/result.json", dataclasses.asdict(outcome))
            print(f"  {name}: {outcome.steps} steps in {outcome.seconds:.1f} s", flush=True)
            found[name] = outcome
        return [Tune(*one, found[name]) for name, one in zip(names, wanted, strict=True)]

    def _kept(self, name: str) -> Any:
        """Return what a stopped run has trained already with these options, or None."""
        from tunes_dagster.training.jobs import TrainingResult

        key = f"tunes/{name}/result.json"
        if not self.store.exists(key):
            return None
        result = TrainingResult(**self.store.read_json(key))
        trained = {k: v for k, v in result.recipe["training"].items() if k != "seed"}
        asked = {k: v for k, v in self.options.model_dump().items() if k != "seed"}
        return result if trained == asked | {"steps": result.steps} else None

    def _job(self, name: str, subject: Subject, seed: int) -> Any:
        from tunes_dagster.training.jobs import TrainExample, TuneJob

        side = self.options.resolution or self.entry.native_size
        items = [
            TrainExample(key=self._store_picture(picture), caption=caption, bucket=(side, side))
            for picture, caption in subject.training
        ]
        options = self.options.model_copy(update={"seed": seed})
        prefix = f"tunes/{name}/lora/1"
        return TuneJob(
            tune_id=name,
            options=options,
            items=items,
            token=subject.token,
            class_name=subject.class_name,
            out_prefix=prefix,
            report=Loud(name),
            resume_from=prefix,
        )

    def _store_picture(self, picture: Image.Image) -> str:
        data = io.BytesIO()
        picture.save(data, "PNG")
        return self.store.write_blob(data.getvalue(), ".png")

    def render(self, wanted: Sequence[tuple[str, int, str | None]]) -> list[Image.Image]:
        """Render (text, seed, weights key or None for the base) with the renderer people use; all of a kind."""
        from tunes_dagster.rendering.jobs import Delivery
        from tunes_dagster.rendering.renderer import RenderJob, render

        base = self.sibling if any(key for _, _, key in wanted) else self.base
        quick = self.arguments.quick and base is self.base
        settings = base.entry.render_settings(RenderSettings(steps=12) if quick else RenderSettings())
        jobs = [
            RenderJob(
                f"p{i:05d}", text, settings.model_copy(update={"seed": seed}), [(key, 1.0)] if key else []
            )
            for i, (text, seed, key) in enumerate(wanted)
        ]
        started = time.monotonic()
        results = render(jobs, base, Delivery(self.store, "renders", Silent()))
        failed = [result.failure for result in results if result.failure]
        if failed:
            raise failed[0]
        pictures = []
        for result in results:
            data = self.store.read_bytes(result.images[0].key)
            pictures.append(Image.open(io.BytesIO(data)).convert("RGB"))
        print(f"  {len(jobs)} renders in {time.monotonic() - started:.1f} s", flush=True)
        return pictures

    def share_obeyed(self, pictures: Sequence[Image.Image], asked: Sequence[Asked]) -> np.ndarray:
        """Return per picture the share of the asked attributes that are recognised."""
        answers = self.classifier.predict(list(pictures))
        return np.array(
            [
                np.mean([answer.get(key) == value for key, value in one.attributes.items()])
                for answer, one in zip(answers, asked, strict=True)
            ]
        )


def _option(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, None if value == "none" else value


def token_prompts(subject: Subject, count: int) -> list[tuple[str, int]]:
    """Return (text, seed) of renders with the token."""
    return [(f"a photo of {subject.called} {place}", 1000 + i) for i, place in enumerate(scenes(count))]


def plain_prompts(subject: Subject, count: int) -> list[tuple[str, int]]:
    """Return (text, seed) of renders without the token."""
    names = subject.plain_names
    return [
        (f"a photo of {names[i % len(names)]} {place}", 1000 + i) for i, place in enumerate(scenes(count))
    ]


def obedience_of(tune: Tune, per_tune: int) -> list[tuple[Asked, int]]:
    """Return the obedience prompts of a tune with their seeds."""
    prompts = obedience_prompts(tune.subject, per_tune, tune.seed)
    return [(asked, 5000 + 100 * tune.seed + i) for i, asked in enumerate(prompts)]


def look_before(bench: Bench, tunes: Sequence[Tune], renders: int, per_tune: int) -> Before:
    """Render everything with the untuned base."""
    before = Before()
    wanted: list[tuple[str, int, str | None]] = []
    after: list[Callable[[list[Image.Image]], None]] = []
    counts: list[int] = []

    def ask(prompts: Sequence[tuple[str, int]], use: Callable[[list[Image.Image]], None]) -> None:
        wanted.extend((text, seed, None) for text, seed in prompts)
        counts.append(len(prompts))
        after.append(use)

    for subject in {tune.subject.name: tune.subject for tune in tunes}.values():
        name = subject.name

        def keep(pictures: list[Image.Image], name: str = name) -> None:
            before.with_token[name] = bench.scorer.embed_images(pictures)
            before.pictures[name] = pictures[:1]

        def keep_plain(pictures: list[Image.Image], name: str = name) -> None:
            before.without_token[name] = bench.scorer.embed_images(pictures)

        ask(token_prompts(subject, renders), keep)
        ask(plain_prompts(subject, renders), keep_plain)
    for tune in tunes:
        asked = obedience_of(tune, per_tune)

        def judge(pictures: list[Image.Image], tune: Tune = tune, asked: Any = asked) -> None:
            key = (tune.subject.name, tune.seed)
            before.obeyed[key] = bench.share_obeyed(pictures, [one for one, _ in asked])

        ask([(one.text.format(tune.subject.called), seed) for one, seed in asked], judge)
    pictures = bench.render(wanted)
    for use, count in zip(after, counts, strict=True):
        use(pictures[:count])
        pictures = pictures[count:]
    return before


def look_after(bench: Bench, tune: Tune, renders: int, per_tune: int) -> None:
    """Render everything with one tune and keep what is measured."""
    key, asked = tune.result.weights_key, obedience_of(tune, per_tune)
    wanted = [*token_prompts(tune.subject, renders), *plain_prompts(tune.subject, renders)]
    wanted += [(one.text.format(tune.subject.called), seed) for one, seed in asked]
    pictures = bench.render([(text, seed, key) for text, seed in wanted])
    tune.with_token = bench.scorer.embed_images(pictures[:renders])
    tune.without_token = bench.scorer.embed_images(pictures[renders : 2 * renders])
    tune.obeyed = bench.share_obeyed(pictures[2 * renders :], [one for one, _ in asked])
    tune.pictures = [*pictures[:5], *pictures[renders : renders + 2]]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="two subjects, one seed, 150 steps: a minute")
    parser.add_argument("--subjects", type=Path, help="a folder with one folder of pictures per subject")
    parser.add_argument("--only", nargs="*", help="names of drawn subjects; still compared with all six")
    parser.add_argument("--together", type=int, default=1, help="tunes that are trained in one forward")
    parser.add_argument("--resume", action="store_true", help="keep what a stopped run has trained")
    parser.add_argument("--seeds", type=int, default=2, help="training seeds per subject")
    parser.add_argument("--renders", type=int, default=24, help="renders per tune with and without token")
    parser.add_argument("--obedience", type=int, default=200, help="obedience prompts over all tunes")
    parser.add_argument("--base", default="tiny-sdxl", help="id in the catalog")
    parser.add_argument(
        "--weights", type=Path, help="folder of the base's weights, when not the installed one"
    )
    parser.add_argument(
        "--render-on", metavar="BRANCH", help="the sibling of the base that renders its tunes"
    )
    parser.add_argument(
        "--out", default=".tunes/fidelity", help="folder of grid and tunes; emptied first unless resuming"
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="OPTION=VALUE", help="training options to change"
    )
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.only = chosen.only or ["fern", "smily"]
        chosen.seeds, chosen.renders, chosen.obedience = 1, 8, 24
    return chosen


def quieten() -> None:
    """Leave only this program's own lines: no bars and notices of the libraries."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    import diffusers
    import transformers

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measure, print, and return what the last line says."""
    chosen = parse(arguments)
    quieten()
    bench = Bench(chosen)
    subjects = folder_subjects(chosen.subjects) if chosen.subjects else drawn_subjects(chosen.only)
    used = {name: value for name, value in bench.options.model_dump().items() if value is not None}
    bases = f"base {bench.entry.base_id}, tunes rendered on {bench.sibling.entry.base_id}"
    print(f"{len(subjects)} subjects, {chosen.seeds} seeds, {bases}: {json.dumps(used)}")
    wanted = [(subject, seed) for seed in range(chosen.seeds) for subject in subjects]
    tunes = []
    for start in range(0, len(wanted), chosen.together):
        tunes += bench.train(wanted[start : start + chosen.together])
    per_tune = max(1, round(chosen.obedience / len(tunes)))
    before = look_before(bench, tunes, chosen.renders, per_tune)
    for tune in tunes:
        look_after(bench, tune, chosen.renders, per_tune)
    centres = {}
    for subject in subjects if chosen.subjects else drawn_subjects():
        mean = bench.scorer.embed_images(list(subject.held_out)).mean(axis=0)
        centres[subject.name] = mean / np.linalg.norm(mean)
    rows = [measure(tune, before, centres) for tune in tunes]
    seconds = float(np.mean([tune.result.seconds for tune in tunes]))
    print_table(tunes, rows, figures_of(rows), intervals(rows), seconds)
    print(f"Picture grid: {draw_grid(tunes, before, bench.out)}")
    headline = figures_of(rows)
    names = ("nearest_subject_accuracy", "leak", "obedience_before", "obedience_after")
    last = {name: round(headline[name], 4) for name in names} | {"seconds_per_tune": round(seconds, 1)}
    print(json.dumps(last))
    return last


if __name__ == "__main__":
    main()
