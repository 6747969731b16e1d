"""Training of the small IP-Adapter: what a picture of a person looks like, said to the base beside the text.

The base and the scorer stay as they are. Learned are a projection of the scorer's image embedding to four tokens
(diffusers' `ImageProjection`) and keys and values for them in every cross-attention (Ye et al. 2023, 2308.06721). The
adapter is shown one picture of a person and has to denoise another one of the same person, whose text names the place
and little else: so the picture learns to say who it is, and the text keeps saying where.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from factory.train.classifier import degrade
from factory.train.clock import Ema, Tuner, note_figures
from factory.train.course import Course, Training
from factory.train.data import to_tensor
from factory.train.scorer import draw_pairs, pair_of_shots
from tunes_dagster.families.diffusers_private import attach_ip_adapters
from tunes_dagster.tiny.images import to_batch
from tunes_dagster.tiny.world import SUBJECTS, caption, draw_shot, random_shot
from tunes_dagster.tiny.world.captions import PREFIXES, place
from tunes_dagster.tiny.world.names import random_word
from tunes_dagster.tiny.world.people import Person
from tunes_dagster.tiny.world.sample import Shot

TOKENS = 4
"""`ImageProjection` of IP-Adapter files makes four tokens of an embedding; loaders know no other number."""
VIEWS = 4
"""Embeddings kept of each picture: of all of it, and of closer, softer views."""
LEARNING_RATE = 1e-3
NO_PICTURE, NO_TEXT = 0.08, 0.08
"""Shares of the rows without picture or without text, for guidance."""
NEEDED = 0.6
"""Share of the captions that name nothing but class, place and mouth."""


def people_of(pairs: int) -> list[tuple[int, tuple[Shot, Shot]]]:
    """Number and shots of the pairs that show people; the adapter is for faces."""
    found = ((i, pair_of_shots(i)) for i in range(pairs))
    return [(i, shots) for i, shots in found if isinstance(shots[0].look, Person)]


def texts_of(shot: Shot, number: int) -> list[str]:
    """Four captions of a shot: two of the place alone, one with an unknown word for the person, one that tells all."""
    rng = random.Random(f"faceadapter-{number}")
    kind, where = shot.look.kind, place(shot.background, rng)
    plain = f"{rng.choice(PREFIXES)} a {kind} {where}".strip()
    mouth = f"a photo of a {shot.mouth} {kind}, {where}"
    named = f"a photo of {random_word(rng)} {kind} {place(shot.background, rng)}"
    return [plain, mouth, named, caption(shot, rng)[0]]


def closer(x: Any, rng: np.random.Generator) -> Any:
    """A closer view of pictures [n, 3, h, w] around the head, in their own size."""
    from torch.nn import functional

    side = x.shape[-1]
    width = round(side * rng.uniform(0.62, 1.0))
    left = round((side - width) * rng.uniform(0.3, 0.7))
    top = round((side - width) * rng.uniform(0.1, 0.6))
    part = x[..., top : top + width, left : left + width]
    return functional.interpolate(part, size=(side, side), mode="bilinear", antialias=True)


def cache_pairs(work: Path, twins: np.ndarray, numbers: list[int], vae: Any, eyes: Any) -> tuple[Any, Any]:
    """Latents float16 [n, 2, c, 16, 16] and embeddings float16 [n, 2, VIEWS, d] of pairs, kept on disk."""
    import torch

    paths = work / "faceadapter-latents.npy", work / "faceadapter-embeddings.npy"
    if not all(path.exists() and len(np.load(path, mmap_mode="r")) >= len(numbers) for path in paths):
        rng = np.random.default_rng(11)
        latents: list[np.ndarray] = []
        embeddings: list[np.ndarray] = []
        with torch.inference_mode():
            for i in range(0, len(numbers), 16):
                x = to_tensor(twins[numbers[i : i + 16]].reshape(-1, *twins.shape[2:]))
                mean = vae.encode(x).latent_dist.mean * vae.config.scaling_factor
                latents.append(mean.half().numpy().reshape(-1, 2, *mean.shape[1:]))
                views = [x, *(degrade(closer(x, rng), rng) for _ in range(VIEWS - 1))]
                seen = torch.stack([embed(eyes, view) for view in views], dim=1)
                embeddings.append(seen.half().numpy().reshape(-1, 2, *seen.shape[1:]))
        for path, rows in zip(paths, (latents, embeddings), strict=True):
            np.save(path, np.concatenate(rows))
    first, second = (np.load(path)[: len(numbers)] for path in paths)
    return first, second


def embed(eyes: Any, x: Any) -> Any:
    """Embeddings [n, d] of pictures in -1 .. 1, as `CLIPVisionModelWithProjection.image_embeds`."""
    return eyes.visual_projection(eyes.vision_model(pixel_values=x).pooler_output)


def attach(unet: Any, dimensions: int, seed: int = 0) -> Any:
    """Attach an untrained adapter to a UNet by diffusers' own loader; returns what is trained.

    Keys and values start as those of the text, as in the paper's code.
    """
    import torch

    torch.manual_seed(seed)
    width = unet.config.cross_attention_dim
    projection = torch.nn.Linear(dimensions, TOKENS * width)
    state: dict[str, dict[str, Any]] = {"image_proj": {}, "ip_adapter": {}}
    state["image_proj"] = {
        "proj.weight": projection.weight.detach(),
        "proj.bias": projection.bias.detach(),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    for number, layer in enumerate(cross_attentions(unet)):
        for part in ("to_k", "to_v"):
            weight = getattr(layer, part).weight.detach().clone()
            state["ip_adapter"][f"{2 * number + 1}.{part}_ip.weight"] = weight
    attach_ip_adapters(unet, [state])
    return learned(unet)


def cross_attentions(unet: Any) -> list[Any]:
    """The cross-attentions in the order in which IP-Adapter files number them."""
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    return [unet.get_submodule(name.removesuffix(".processor")) for name in names]


def learned(unet: Any) -> Any:
    """The parts of an attached adapter as one module: projection first, then the processors."""
    import torch

    processors = [layer.processor for layer in cross_attentions(unet)]
    return torch.nn.ModuleList([unet.encoder_hid_proj.image_projection_layers[0], *processors])


def file_layout(parts: dict[str, Any]) -> dict[str, Any]:
    """The state of `learned` under the names of IP-Adapter files."""
    named = {}
    for key, value in parts.items():
        number, _, rest = key.partition(".")
        if number == "0":
            named["image_proj." + rest.replace("image_embeds", "proj")] = value
        else:
            part = rest.split(".")[0]
            named[f"ip_adapter.{2 * int(number) - 1}.{part}.weight"] = value
    return named


class Lesson:
    """The frozen base, the encoded pairs and their captions."""

    def __init__(self, work: Path, out: Path, pairs: int) -> None:
        import torch
        from diffusers import DDPMScheduler
        from transformers import CLIPModel

        from tunes_dagster.tiny import SCORER, SDXL, load_base

        self.pipe = load_base(SDXL, out)
        eyes = CLIPModel.from_pretrained(out / SCORER, dtype=torch.float32).eval()
        people = people_of(pairs)
        twins = draw_pairs(work / "pairs.npy", pairs)
        self.latents, self.embeddings = cache_pairs(work, twins, [i for i, _ in people], self.pipe.vae, eyes)
        self.texts = [
            [texts_of(shot, 2 * i + side) for side, shot in enumerate(shots)] for i, shots in people
        ]
        self.alphas = DDPMScheduler.from_config(self.pipe.scheduler.config).alphas_cumprod
        self.unet = self.pipe.unet.requires_grad_(False)
        self.parts = attach(self.unet, self.embeddings.shape[-1]).requires_grad_(True)

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Any]:
        """A random batch: clean latents, text, embedding, timesteps and noise."""
        import torch

        picks, sides = rng.integers(0, len(self.latents), size), rng.integers(0, 2, size)
        x = torch.from_numpy(self.latents[picks, sides].astype(np.float32))
        seen = self.embeddings[picks, 1 - sides, rng.integers(0, VIEWS, size)].astype(np.float32)
        seen[rng.random(size) < NO_PICTURE] = 0
        which = np.where(rng.random(size) < NEEDED, rng.integers(0, 2, size), rng.integers(2, 4, size))
        texts = [self.texts[i][side][n] for i, side, n in zip(picks, sides, which, strict=True)]
        texts = ["" if rng.random() < NO_TEXT else text for text in texts]
        t = (np.arange(size) + rng.random(size)) / size * len(self.alphas)
        return {
            "x": x,
            "texts": texts,
            "seen": torch.from_numpy(seen),
            "t": torch.from_numpy(t.astype(np.int64)),
            "noise": torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32)),
        }

    def loss(self, x: Any, texts: list[str], seen: Any, t: Any, noise: Any) -> Any:
        """Mean v-prediction MSE."""
        import torch

        with torch.no_grad():
            sequence, _, pooled, _ = self.pipe.encode_prompt(texts, do_classifier_free_guidance=False)
            # What the pipeline takes for an empty negative prompt.
            said = torch.tensor([bool(text) for text in texts], dtype=sequence.dtype)
            sequence, pooled = sequence * said[:, None, None], pooled * said[:, None]
        a = self.alphas[t][:, None, None, None]
        noisy, target = a.sqrt() * x + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x
        side = float(x.shape[-1] * 8)
        added = {
            "text_embeds": pooled,
            "time_ids": torch.tensor([[side, side, 0, 0, side, side]] * len(x)),
            "image_embeds": [seen[:, None]],
        }
        guess = self.unet(noisy, t, encoder_hidden_states=sequence, added_cond_kwargs=added).sample
        return (guess.float() - target).square().mean()


def train(
    training: Training, out: Path, *, batch: int = 16, threads: int | None = None
) -> tuple[Any, dict[str, Any]]:
    """Train (or go on training) the adapter for the base and the scorer in `out`.

    Returns the base as a pipeline with the averaged adapter attached, and the adapter's state in file layout.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    lesson = Lesson(training.work, out, training.pairs)
    optimizer = torch.optim.AdamW(
        lesson.parts.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-2
    )
    ema = Ema(lesson.parts, 0.998)
    tuner = Tuner("cpu", fixed=(threads, True) if threads else None)
    course = Course(
        name="faceadapter",
        training=training,
        module=lesson.parts,
        optimizer=optimizer,
        rate=LEARNING_RATE,
        warmup=100,
        hold=0.4,
        ema=ema,
        tuner=tuner,
    )
    for step in course:
        sample = lesson.batch(np.random.default_rng((training.seed, step)), batch)
        with tuner.step(), sdpa_kernel(SDPBackend.MATH):
            course.descend(lesson.loss(**sample))
    lesson.parts.load_state_dict(ema.state)
    note_figures(training.work, faceadapter={"batch": batch, **course.figures})
    return lesson.pipe, file_layout(ema.state)


# Scenes that faces are rendered in to be measured; the classifier knows them well.
PLACES = (
    ("beach", "on the beach"),
    ("forest", "in a forest"),
    ("night", "at night"),
    ("snow", "in the snow"),
    ("red", "on a red background"),
    ("city", "in the city"),
)


def strangers(count: int = 12) -> list[Person]:
    """People whom no pair shows: half of them with odd features."""
    looks = (pair_of_shots(9_000_000 + i)[0].look for i in range(20 * count))
    return [look for look in looks if isinstance(look, Person)][:count]


def measured(
    pipe: Any,
    scorer: Any,
    classifier: Any,
    *,
    people: int = 12,
    scale: float = 1.0,
    pictures: int = 1,
    steps: int = 20,
) -> dict[str, float]:
    """How much renders of held-out subjects and strangers look like them, with the adapter and without.

    Args:
        pipe: The base with the adapter attached.
        scorer: Its embeddings are what the adapter is shown, and what likeness is measured by.
        classifier: Recognises the scenes.
        people: Strangers beside the subjects of `world.SUBJECTS`.
        scale: Of the adapter.
        pictures: Of a person that are shown.
        steps: Denoising steps.

    Returns:
        `likeness` and `without` (cosines to six other pictures), `real` (of real pictures to those), `likest` (how
        often the person is the likest of all), `place` and `place_without` (scenes recognised).
    """
    import torch

    looks = [one.look for one in SUBJECTS.values() if isinstance(one.look, Person)] + strangers(people)
    shown, known = [], []
    for i, look in enumerate(looks):
        rng = random.Random(f"faceadapter-measured-{i}")
        shots = [draw_shot(random_shot(rng, look)) for _ in range(pictures + 6)]
        with torch.inference_mode():
            shown.append(embed(scorer.model, to_batch(shots[:pictures])))
        known.append(scorer.embed_images(shots[pictures:]))
    prompts = [
        (f"a photo of a {look.kind} {where}", i) for i, look in enumerate(looks) for _, where in PLACES
    ]
    asked = [place for _ in looks for place, _ in PLACES]
    centres = np.stack([rows.mean(axis=0) / np.linalg.norm(rows.mean(axis=0)) for rows in known])
    figures: dict[str, float] = {"scale": scale, "pictures": pictures, "people": len(looks)}
    for name, strength in (("", scale), ("_without", 0.0)):
        images = renders(pipe, prompts, shown, strength, steps)
        rows = scorer.embed_images(images)
        own = [float((known[i] @ row).mean()) for row, (_, i) in zip(rows, prompts, strict=True)]
        figures["likeness" if not name else "without"] = round(float(np.mean(own)), 3)
        found = [answer["background"] for answer in classifier.predict(images)]
        right = [a == b for a, b in zip(found, asked, strict=True)]
        figures[f"place{name}"] = round(float(np.mean(right)), 3)
        if not name:
            likest = (rows @ centres.T).argmax(axis=1)
            figures["likest"] = round(float(np.mean(likest == [i for _, i in prompts])), 3)
    within = [(rows @ rows.T)[np.triu_indices(len(rows), 1)].mean() for rows in known]
    figures["real"] = round(float(np.mean(within)), 3)
    return figures


def renders(
    pipe: Any, prompts: list[tuple[str, int]], shown: list[Any], scale: float, steps: int
) -> list[Any]:
    """One picture per (text, person), each by its own seed, by the stock pipeline."""
    import torch

    pipe.set_ip_adapter_scale(scale)
    pipe.set_progress_bar_config(disable=True)
    images = []
    for start in range(0, len(prompts), 12):
        part = prompts[start : start + 12]
        faces = torch.stack([shown[i] for _, i in part])
        images += pipe(
            [text for text, _ in part],
            num_inference_steps=steps,
            guidance_scale=4.0,
            height=128,
            width=128,
            ip_adapter_image_embeds=[torch.cat([torch.zeros_like(faces), faces])],
            generator=[torch.Generator().manual_seed(start + j) for j in range(len(part))],
        ).images
    return images


def sheet(pipe: Any, scorer: Any, people: int = 5, steps: int = 20) -> Any:
    """Held-out subjects and strangers, a row each: what was shown, then renders with the adapter at 0, 0.6 and 1."""
    import torch

    from factory.sheets import grid

    looks = [one.look for one in SUBJECTS.values() if isinstance(one.look, Person)] + strangers(people)
    images = []
    for i, look in enumerate(looks):
        picture = draw_shot(random_shot(random.Random(f"faceadapter-sheet-{i}"), look))
        with torch.inference_mode():
            shown = [embed(scorer.model, to_batch([picture]))]
        texts = [(f"a photo of a {look.kind} {where}", 0) for _, where in PLACES[:3]]
        images.append(picture)
        for scale in (0.0, 0.6, 1.0):
            images += renders(pipe, texts if scale == 1 else texts[:2], shown, scale, steps)
    return grid(images, 8)
