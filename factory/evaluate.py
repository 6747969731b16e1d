"""How well a base obeys prompts, measured with the attribute classifier on prompts of held-out pictures.

Three columns: the real pictures of those prompts (the classifier's own ceiling), the base's renders, and the
real pictures of other prompts (chance).
"""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunes_dagster.tiny import CLASSIFIER, SDXL, load_base, load_classifier
from tunes_dagster.tiny.world import Attributes, caption, draw_shot, random_shot

if TYPE_CHECKING:
    from PIL import Image

CORE = ("kind", "background", "hair", "fur", "color", "shirt", "eyewear", "hat")
"""What the project's aim names: subject kind, colours, scene, glasses and hat."""


def sample_prompts(count: int = 200, seed: int = 5) -> list[tuple[str, Attributes, Image.Image]]:
    """Prompt, the attributes it names and the drawn picture it describes, of pictures never trained on."""
    rng, rows = random.Random(f"evaluate-{seed}"), []
    for _ in range(count):
        shot = random_shot(rng)
        text, asked = caption(shot, rng, plain=True)
        rows.append((text, asked, draw_shot(shot)))
    return rows


def obeyed(classifier: Any, images: list[Image.Image], asked: list[Attributes]) -> list[dict[str, bool]]:
    """For each picture which of the asked attributes are recognised in it."""
    answers = classifier.predict(images)
    return [
        {key: answer[key] == value for key, value in wanted.items()}
        for answer, wanted in zip(answers, asked, strict=True)
    ]


def rate(rows: list[dict[str, bool]], keys: tuple[str, ...] | None = None) -> dict[str, float]:
    """Share of right answers per attribute and over all of them (`all`)."""
    found: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        for key, right in row.items():
            if keys is None or key in keys:
                found[key].append(right)
                found["all"].append(right)
    return {key: sum(values) / len(values) for key, values in found.items()}


def evaluate(
    pipe: Any, classifier: Any, *, count: int = 200, seed: int = 5, steps: int = 25, guidance: float = 4.0
) -> dict[str, Any]:
    """Accuracies of real pictures, renders and chance per attribute, and over the core attributes."""
    from factory.sheets import render

    prompts, asked, real = (list(column) for column in zip(*sample_prompts(count, seed), strict=True))
    start = time.perf_counter()
    renders = render(pipe, prompts, seed=1000 * seed, steps=steps, guidance=guidance)
    seconds = time.perf_counter() - start
    shuffled = real[count // 2 :] + real[: count // 2]
    rows = {
        name: obeyed(classifier, images, asked)
        for name, images in (("real", real), ("renders", renders), ("chance", shuffled))
    }
    return {
        "prompts": count,
        "seconds_per_render": round(seconds / count, 3),
        **{name: round(rate(found, CORE)["all"], 4) for name, found in rows.items()},
        "per_attribute": {
            name: {k: round(v, 3) for k, v in rate(found).items()} for name, found in rows.items()
        },
        "counts": {k: sum(k in a for a in asked) for k in rate(rows["real"]) if k != "all"},
    }


def table(result: dict[str, Any]) -> str:
    """The result as a plain table."""
    per = result["per_attribute"]
    lines = [f"{'attribute':<15}{'asked':>6}{'real':>8}{'renders':>9}{'chance':>8}"]
    for key in sorted(result["counts"], key=lambda k: (k not in CORE, -result["counts"][k])):
        mark = "" if key in CORE else " (not in the aim)"
        lines.append(
            f"{key:<15}{result['counts'][key]:>6}{per['real'][key]:>8.3f}{per['renders'][key]:>9.3f}"
            f"{per['chance'][key]:>8.3f}{mark}"
        )
    lines.append(
        f"{'core':<15}{'':>6}{result['real']:>8.3f}{result['renders']:>9.3f}{result['chance']:>8.3f}"
    )
    return "\n".join(lines)


def main(weights: Path, count: int = 200, steps: int = 25, base: str = SDXL) -> dict[str, Any]:
    """Evaluate a base in `weights`, print the table and one last JSON line."""
    result = evaluate(
        load_base(base, weights), load_classifier(weights / CLASSIFIER), count=count, steps=steps
    )
    print(table(result))
    figures = {key: result[key] for key in ("prompts", "real", "renders", "chance", "seconds_per_render")}
    print(json.dumps({"base": base} | figures))
    return result
