"""Training of the detector of drawn faces on collages of drawn pictures, whose faces' places are known.

A collage puts up to five pictures of the world, enlarged or reduced, onto one canvas, so that faces come in every
size, several at once, cut off, half hidden, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from factory.train.classifier import degrade
from factory.train.clock import Ema, Tuner, note_figures
from factory.train.course import Course, Training
from factory.train.data import HELD_OUT, draw_pictures, to_tensor
from factory.train.scorer import draw_pairs, pair_of_shots
from tunes_dagster.tiny.faces import STRIDE, UNIT, DrawnFaces, build, folded, overlap
from tunes_dagster.tiny.world import SIZE, SUBJECTS, draw_subject, face_box, shot, shots_of
from tunes_dagster.tiny.world.sample import Shot

CANVAS = 128
SMALLEST, LARGEST = 18.0, 90.0
"""Heights in pixels of the faces that count; others are neither learned nor held against the net."""
ODD = 0.3
"""Share of the pictures whose look has features beyond the world's."""
_HIDDEN, _GONE = 0.3, 0.85
"""From these shares of a face hidden or cut off it is in doubt, and gone."""

Faces = list[tuple[float, float, float, float]]


def boxes_of(shots: Iterator[Shot], count: int) -> np.ndarray:
    """Left, top, width, height of the face in each of `count` pictures, float32 [count, 4]; zeros without a face."""
    rows = [face_box(content) or (0, 0, 0, 0) for content, _ in zip(shots, range(count), strict=False)]
    return np.array(rows, dtype=np.float32)


def boxes_of_pictures(path: Path, count: int, start: int = 0) -> np.ndarray:
    """`boxes_of` the pictures that `draw_pictures` draws, kept at `path`."""
    if not path.exists() or len(np.load(path, mmap_mode="r")) < count:
        np.save(path, boxes_of((shot(start + i)[0] for i in range(count)), count))
    return np.load(path)[:count]


def boxes_of_pairs(path: Path, pairs: int) -> np.ndarray:
    """`boxes_of` both pictures of each pair, kept at `path`: float32 [pairs, 2, 4]."""
    if not path.exists() or len(np.load(path, mmap_mode="r")) < pairs:
        both = (side for i in range(pairs) for side in pair_of_shots(i))
        np.save(path, boxes_of(both, 2 * pairs).reshape(pairs, 2, 4))
    return np.load(path)[:pairs]


def collage(
    rng: np.random.Generator, pick: Callable[[], tuple[np.ndarray, np.ndarray]], size: int = CANVAS
) -> tuple[np.ndarray, Faces, Faces]:
    """A canvas uint8 [size, size, 3] with pictures on it, its faces, and boxes in which nobody knows.

    Args:
        rng: Decides everything but the pictures.
        pick: Gives a picture and the box of its face (zeros without one).
        size: Of the canvas in pixels.
    """
    canvas = _backdrop(rng, pick()[0], size)
    placed: list[list[Any]] = []  # box, share of it that cannot be seen
    for _ in range(rng.choice((0, 1, 2, 3, 5), p=(0.2, 0.44, 0.16, 0.1, 0.1))):
        picture, box = pick()
        left, top, scale, mirrored = _place(rng, box, size)
        frame = _paste(canvas, picture, left, top, scale, mirrored)
        for other in placed:
            other[1] = max(other[1], _covered(other[0], frame))
        if box[3] > 0:
            x = SIZE - box[0] - box[2] if mirrored else box[0]
            face = (left + x * scale, top + box[1] * scale, box[2] * scale, box[3] * scale)
            placed.append([face, 1 - _covered(face, (0, 0, size, size))])
    canvas = _wobbled(rng, canvas)
    known, doubtful = [], []
    for face, hidden in placed:
        if hidden < _HIDDEN and SMALLEST <= face[3] <= LARGEST:
            known.append(face)
        elif hidden < _GONE:
            doubtful.append(face)
    return canvas, known, doubtful


def _backdrop(rng: np.random.Generator, picture: np.ndarray, size: int) -> np.ndarray:
    """What lies under the pictures: a flat colour, noise, leaves, or a picture's edge, drawn out."""
    import cv2

    roll = rng.random()
    if roll < 0.15:
        return np.full((size, size, 3), rng.integers(0, 256, 3), np.uint8)
    if roll < 0.3:
        cells = int(rng.choice((2, 4, 8, 16, 32, 64)))
        noise = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        return cv2.resize(noise, (size, size), interpolation=int(rng.integers(0, 3)))
    if roll < 0.7:
        return _leaves(rng, size)
    edge = picture[:, : SIZE // 16] if rng.random() < 0.5 else picture[: SIZE // 16].transpose(1, 0, 2)
    return cv2.resize(np.ascontiguousarray(edge), (size, size))


def _leaves(rng: np.random.Generator, size: int) -> np.ndarray:
    """Overlapping shapes of all sizes, some shaded, some in pairs, under noise: the statistics of photographs.

    The dead-leaves model (Lee, Mumford & Huang 2001), so that photographs are not taken for faces.
    """
    import cv2

    canvas = np.full((size, size, 3), rng.integers(0, 256, 3), np.uint8)
    count, chroma = int(rng.integers(3, 8)), rng.choice((0, 20, 40, 100))
    tones = rng.integers(0, 256, (count, 1)) + rng.normal(0, chroma, (count, 3))
    for _ in range(int(rng.integers(10, 90))):
        radius = min(0.6 * size, 2.0 / rng.uniform(0.015, 1.0))
        axes = (max(1, int(radius * rng.uniform(0.3, 1))), max(1, int(radius)))
        color = tuple(int(v) for v in np.clip(tones[rng.integers(len(tones))] + rng.normal(0, 25, 3), 0, 255))
        x, y = (int(v) for v in rng.integers(0, size, 2))
        turn = float(rng.uniform(0, 180))
        pair = int(2.6 * axes[0]) if rng.random() < 0.15 else 0  # two of a kind, as eyes and wheels are
        for shift in {0, pair}:
            if pair or rng.random() < 0.7:
                cv2.ellipse(canvas, (x + shift, y), axes, turn, 0, 360, color, -1, cv2.LINE_AA)
                if pair or rng.random() < 0.3:
                    inner = tuple(int(v) for v in tones[0].clip(0, 255))
                    cv2.ellipse(canvas, (x + shift, y), (axes[0] // 2, axes[1] // 2), turn, 0, 360, inner, -1)
            else:
                corners = cv2.boxPoints(((x + shift, y), (2 * axes[0], 2 * axes[1]), turn)).astype(np.int32)
                cv2.fillPoly(canvas, [corners], color, cv2.LINE_AA)
    shade = cv2.resize(
        rng.normal(0, 1, (4, 4, 1)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC
    )
    grain = rng.normal(0, rng.uniform(0, 20), (size, size, 1))
    return np.clip(canvas + shade[..., None] * rng.uniform(0, 40) + grain, 0, 255).astype(np.uint8)


def _place(rng: np.random.Generator, box: np.ndarray, size: int) -> tuple[float, float, float, bool]:
    """Left and top of a picture on the canvas, its scale, and whether it is mirrored."""
    if box[3] > 0:
        height = float(np.exp(rng.uniform(np.log(12), np.log(115))))
        scale = height / float(box[3])
        # The face's middle lies on the canvas, mostly well inside.
        middle = rng.uniform(0.02, 0.98, 2) * size
        left, top = middle[0] - (box[0] + box[2] / 2) * scale, middle[1] - (box[1] + box[3] / 2) * scale
    else:
        scale = float(np.exp(rng.uniform(np.log(0.3), np.log(2.0))))
        left, top = rng.uniform(-0.5, 0.8, 2) * size * max(1.0, scale)
    return float(left), float(top), scale, bool(rng.random() < 0.5)


def _paste(
    canvas: np.ndarray, picture: np.ndarray, left: float, top: float, scale: float, mirrored: bool
) -> tuple[float, float, float, float]:
    """Put a picture onto the canvas; returns left, top, width and height of what it covers, in pixels."""
    import cv2

    size = len(canvas)
    source = picture[:, ::-1] if mirrored else picture
    x0, y0 = max(0, round(left)), max(0, round(top))
    x1, y1 = min(size, round(left + SIZE * scale)), min(size, round(top + SIZE * scale))
    if x1 <= x0 or y1 <= y0:
        return (0, 0, 0, 0)
    if scale < 1:  # first smaller as a whole: an affine map alone would skip pixels
        small = max(1, round(SIZE * scale))
        source = cv2.resize(np.ascontiguousarray(source), (small, small), interpolation=cv2.INTER_AREA)
    step = len(source) / (SIZE * scale)
    # A pixel's middle at x of the canvas shows the source at (x - left) * step.
    matrix = np.array([[step, 0, (x0 + 0.5 - left) * step - 0.5], [0, step, (y0 + 0.5 - top) * step - 0.5]])
    canvas[y0:y1, x0:x1] = cv2.warpAffine(
        np.ascontiguousarray(source),
        matrix,
        (x1 - x0, y1 - y0),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return (x0, y0, x1 - x0, y1 - y0)


def _wobbled(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """The canvas with its shapes bent by a few pixels, as renders bend them; every other one stays straight."""
    import cv2

    if rng.random() < 0.5:
        return canvas
    size = len(canvas)
    bend = rng.standard_normal((6, 6, 2), dtype=np.float32) * rng.uniform(0.5, 2.5)
    shifts = cv2.resize(bend, (size, size), interpolation=cv2.INTER_CUBIC)
    ys, xs = np.mgrid[:size, :size].astype(np.float32)
    return cv2.remap(
        canvas, xs + shifts[..., 0], ys + shifts[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def _covered(face: tuple[float, ...], frame: tuple[float, ...]) -> float:
    """Share of a face that lies inside a frame."""
    across = min(face[0] + face[2], frame[0] + frame[2]) - max(face[0], frame[0])
    down = min(face[1] + face[3], frame[1] + frame[3]) - max(face[1], frame[1])
    return max(0.0, across) * max(0.0, down) / max(1e-6, face[2] * face[3])


def targets(known: Faces, doubtful: Faces, size: int = CANVAS) -> np.ndarray:
    """What the net should answer: float32 [7, cells, cells].

    Channels: how near a face's middle is (1 in its cell); the four measures of `faces.CHANNELS`; where these
    count; where the first counts.
    """
    cells = size // STRIDE
    wanted = np.zeros((7, cells, cells), np.float32)
    wanted[6] = 1
    middles = (np.arange(cells) + 0.5) * STRIDE
    for x, y, width, height in doubtful:
        inside = (np.abs(middles - y - height / 2)[:, None] < height / 2) & (
            np.abs(middles - x - width / 2)[None] < width / 2
        )
        wanted[6][inside] = 0
    for x, y, width, height in known:
        cx, cy = x + width / 2, y + height / 2
        far = (middles[None] - cx) ** 2 + (middles[:, None] - cy) ** 2
        spread = max(5.0, 0.14 * height)
        near = np.exp(-far / (2 * spread**2))
        near[min(cells - 1, max(0, int(cy / STRIDE))), min(cells - 1, max(0, int(cx / STRIDE)))] = 1
        closest = near > wanted[0]
        wanted[0][closest] = near[closest]
        counts = closest & (near > 0.4)
        wanted[1][counts] = np.broadcast_to((cx - middles[None]) / STRIDE, near.shape)[counts]
        wanted[2][counts] = np.broadcast_to((cy - middles[:, None]) / STRIDE, near.shape)[counts]
        wanted[3][counts], wanted[4][counts] = np.log(width / UNIT), np.log(height / UNIT)
        wanted[5][counts] = near[counts]
        wanted[6][counts] = 1
    return wanted


def loss(answer: Any, wanted: Any) -> Any:
    """Focal loss on the middles (CenterNet, Zhou et al. 2019, equation 1) plus L1 on the four measures."""
    import torch
    from torch.nn import functional

    logit, near, trusted = answer[:, 0].float(), wanted[:, 0], wanted[:, 6]
    certain = torch.sigmoid(logit)
    middle = (near == 1).float()
    found = (1 - certain) ** 2 * functional.logsigmoid(logit) * middle
    empty = (1 - near) ** 4 * certain**2 * functional.logsigmoid(-logit) * (1 - middle) * trusted
    faces = middle.sum().clamp(min=1)
    counts = wanted[:, 5:6]
    off = (answer[:, 1:].float() - wanted[:, 1:5]).abs() * counts
    weight = torch.tensor([0.5, 0.5, 4.0, 4.0], device=off.device)[None, :, None, None]
    return -(found + empty).sum() / faces + (off * weight).sum() / counts.sum().clamp(min=1)


class Collages:
    """Batches of collages and their targets, from drawn pictures and pairs whose boxes are known."""

    def __init__(self, work: Path, pictures: int, pairs: int) -> None:
        self.data = draw_pictures(work / "train.npy", pictures)
        self.boxes = boxes_of_pictures(work / "face-boxes.npy", pictures)
        self.odd = draw_pairs(work / "pairs.npy", pairs)
        self.odd_boxes = boxes_of_pairs(work / "face-boxes-pairs.npy", pairs)

    def batch(self, rng: np.random.Generator, size: int) -> tuple[Any, Any]:
        """Pictures float32 [size, 3, CANVAS, CANVAS] and targets [size, 7, cells, cells]."""
        import torch

        def pick() -> tuple[np.ndarray, np.ndarray]:
            if rng.random() < ODD:
                i, side = rng.integers(0, len(self.odd_boxes)), rng.integers(0, 2)
                return self.odd[i, side], self.odd_boxes[i, side]
            i = rng.integers(0, len(self.boxes))
            return self.data[i], self.boxes[i]

        rows = [collage(rng, pick) for _ in range(size)]
        wanted = np.stack([targets(known, doubtful) for _, known, doubtful in rows])
        return degrade(to_tensor(np.stack([canvas for canvas, _, _ in rows])), rng), torch.from_numpy(wanted)


def train(training: Training, *, batch: int = 24) -> DrawnFaces:
    """Train the detector in `training.work`; returns it with averaged weights."""
    import torch

    source = Collages(training.work, min(training.pictures, 16_000), training.pairs)
    tuner = Tuner(training.device)
    torch.manual_seed(training.seed)
    net = build().to(training.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    ema = Ema(net, 0.998)
    course = Course(
        name="faces",
        training=training,
        module=net,
        optimizer=optimizer,
        rate=3e-3,
        warmup=50,
        hold=0.4,
        clip=None,
        ema=ema,
        tuner=tuner,
    )
    for step in course:
        drawn = source.batch(np.random.default_rng((training.seed, step)), batch)
        shown, wanted = (part.to(training.device) for part in drawn)
        with tuner.step(batch):
            course.descend(loss(net.train()(shown), wanted))
    net.load_state_dict(ema.state)
    model = DrawnFaces(folded(net.cpu().eval()))
    figures = accuracy(model, training.work)
    note_figures(training.work, faces={**figures, "batch": batch, **course.figures})
    training.log(f"faces done: {figures}")
    return model


def accuracy(model: DrawnFaces, work: Path, count: int = 300) -> dict[str, Any]:
    """Recall, precision and error of the height on what was never trained on.

    `pictures` are single ones as drawn, `subjects` the held-out subjects, `collages` several pictures on canvases of
    96 to 1,024 pixels.
    """
    path = work / "held-out.npy"
    data = (np.load(path, mmap_mode="r") if path.exists() else draw_pictures(path, count, HELD_OUT))[:count]
    count = len(data)
    boxes = boxes_of((shot(HELD_OUT + i)[0] for i in range(count)), count)
    alone = [(picture, [tuple(box)] if box[3] else []) for picture, box in zip(data, boxes, strict=True)]
    rng = np.random.default_rng(0)
    return {
        "pictures": rated(model, alone),
        "subjects": rated(model, list(_subjects())),
        "collages": rated(model, [_large_collage(rng, data, boxes) for _ in range(count // 2)]),
    }


def _subjects(each: int = 8) -> Iterator[tuple[np.ndarray, Faces]]:
    """Pictures of the held-out subjects and their faces."""
    for name in SUBJECTS:
        drawn = draw_subject(name, each, seed=21, size=256)
        for (image, _), content in zip(drawn, shots_of(name, each, seed=21), strict=True):
            box = face_box(content, 256)
            yield np.asarray(image), [box] if box else []


def _large_collage(rng: np.random.Generator, data: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, Faces]:
    """A collage as people hand it in: faces of a tenth to nine tenths of its side, those in doubt left out of it."""
    import cv2

    def pick() -> tuple[np.ndarray, np.ndarray]:
        i = rng.integers(0, len(data))
        return data[i], boxes[i]

    while True:
        canvas, known, doubtful = collage(rng, pick)
        if not doubtful:
            size = int(rng.choice((96, 192, 384, 768, 1024)))
            scale = size / CANVAS
            faces = [tuple(value * scale for value in face) for face in known]
            return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_CUBIC), faces  # type: ignore[return-value]


def rated(model: Any, rows: list[tuple[np.ndarray, Faces]]) -> dict[str, float]:
    """Recall and precision at an intersection over union of 0.5, and the mean error of the height of found faces."""
    from PIL import Image

    true = hits = said = 0
    errors: list[float] = []
    for pixels, faces in rows:
        found = [_middle(box) for box in model.detect(Image.fromarray(pixels))]
        true, said = true + len(faces), said + len(found)
        open_boxes = [_middle(face) for face in faces]
        for box in found:
            best = max(open_boxes, key=lambda face: overlap(face, box)[0], default=None)
            if best is not None and overlap(best, box)[0] >= 0.5:
                hits += 1
                errors.append(abs(float(box[3] / best[3]) - 1))
                open_boxes = [face for face in open_boxes if face is not best]
    return {
        "faces": true,
        "recall": round(hits / max(1, true), 4),
        "precision": round(hits / max(1, said), 4),
        "height_error": round(float(np.mean(errors)), 4) if errors else 0.0,
    }


def _middle(box: tuple[float, ...]) -> np.ndarray:
    return np.array([box[0] + box[2] / 2, box[1] + box[3] / 2, box[2], box[3]])
