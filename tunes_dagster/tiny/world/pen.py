"""A pen over a Pillow image: shapes in world units (the picture is 128 x 128 units), with a pose applied.

Every shape becomes a polygon, so that one affine pose (shift, zoom, tilt, mirror) holds for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .palette import Color

UNITS = 128
Point = tuple[float, float]

_CIRCLE = [(math.cos(2 * math.pi * i / 40), math.sin(2 * math.pi * i / 40)) for i in range(40)]


@dataclass(frozen=True)
class Pose:
    """Where a figure stands: shift in units, zoom factor, tilt in degrees, mirrored or not."""

    dx: float = 0.0
    dy: float = 0.0
    zoom: float = 1.0
    tilt: float = 0.0
    mirror: bool = False
    pivot: Point = (64.0, 104.0)


class Pen:
    """Draws on `image` (square, any size) in world units under a `Pose`."""

    def __init__(self, image: Image.Image, pose: Pose | None = None) -> None:
        self.image = image
        self.draw = ImageDraw.Draw(image)
        self.scale = image.width / UNITS
        self.pose = pose or Pose()
        angle = math.radians(self.pose.tilt)
        self._cos, self._sin = math.cos(angle) * self.pose.zoom, math.sin(angle) * self.pose.zoom

    def to_pixels(self, points: Sequence[Point]) -> list[Point]:
        """World units to pixel coordinates."""
        (px, py), k = self.pose.pivot, self.scale
        dx, dy, sign = px + self.pose.dx, py + self.pose.dy, -1.0 if self.pose.mirror else 1.0
        return [
            (
                ((x - px) * sign * self._cos - (y - py) * self._sin + dx) * k,
                ((x - px) * sign * self._sin + (y - py) * self._cos + dy) * k,
            )
            for x, y in points
        ]

    def poly(self, points: Sequence[Point], color: Color) -> None:
        """Filled polygon."""
        self.draw.polygon(self.to_pixels(points), fill=color)

    def rect(self, x0: float, y0: float, x1: float, y1: float, color: Color) -> None:
        """Filled rectangle."""
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color)

    def round_rect(self, x0: float, y0: float, x1: float, y1: float, r: float, color: Color) -> None:
        """Filled rectangle with corner radius `r`."""
        points: list[Point] = []
        corners = ((x1 - r, y1 - r, 0), (x0 + r, y1 - r, 90), (x0 + r, y0 + r, 180), (x1 - r, y0 + r, 270))
        for cx, cy, start in corners:
            for step in range(7):
                angle = math.radians(start + 15 * step)
                points.append((cx + r * math.cos(angle), cy + r * math.sin(angle)))
        self.poly(points, color)

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, color: Color, turn: float = 0.0) -> None:
        """Filled ellipse, turned by `turn` degrees."""
        self.poly(ellipse_points(cx, cy, rx, ry, turn), color)

    def circle(self, cx: float, cy: float, r: float, color: Color) -> None:
        """Filled circle."""
        self.ellipse(cx, cy, r, r, color)

    def ring(self, cx: float, cy: float, r: float, width: float, color: Color) -> None:
        """Circle outline `width` units thick."""
        points = ellipse_points(cx, cy, r, r)
        self.line([*points, points[0], points[1]], width, color)

    def line(self, points: Sequence[Point], width: float, color: Color) -> None:
        """Polyline with round joints and ends."""
        pixels = self.to_pixels(points)
        w = width * self.scale * self.pose.zoom
        self.draw.line(pixels, fill=color, width=max(1, round(w)), joint="curve")
        for x, y in (pixels[0], pixels[-1]):
            self.draw.ellipse((x - w / 2, y - w / 2, x + w / 2, y + w / 2), fill=color)

    def arc(
        self,
        cx: float,
        cy: float,
        rx: float,
        ry: float,
        span: tuple[float, float],
        width: float,
        color: Color,
    ) -> None:
        """Open arc between the two angles of `span`, in degrees (0 = right, 90 = down)."""
        steps, (start, end) = 14, span
        angles = [math.radians(start + (end - start) * i / steps) for i in range(steps + 1)]
        self.line([(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles], width, color)

    def band(self, cx: float, cy: float, rx: float, ry: float, y0: float, y1: float, color: Color) -> None:
        """The part of an ellipse between two heights: fringes, stripes, collars."""
        self.poly(band_points(cx, cy, rx, ry, y0, y1), color)

    def star(self, cx: float, cy: float, r: float, color: Color) -> None:
        """Five-pointed star of outer radius `r`."""
        points = []
        for i in range(10):
            angle, radius = math.pi * (i / 5 - 0.5), r if i % 2 == 0 else r * 0.45
            points.append((cx + radius * math.cos(angle), cy + radius * math.sin(angle)))
        self.poly(points, color)

    def heart(self, cx: float, cy: float, r: float, color: Color) -> None:
        """Heart about `2 r` wide."""
        self.circle(cx - r * 0.5, cy - r * 0.3, r * 0.56, color)
        self.circle(cx + r * 0.5, cy - r * 0.3, r * 0.56, color)
        self.poly([(cx - r, cy - r * 0.05), (cx + r, cy - r * 0.05), (cx, cy + r)], color)


def ellipse_points(cx: float, cy: float, rx: float, ry: float, turn: float = 0.0) -> list[Point]:
    """Forty points of an ellipse turned by `turn` degrees."""
    if not turn:
        return [(cx + rx * c, cy + ry * s) for c, s in _CIRCLE]
    a = math.radians(turn)
    ca, sa = math.cos(a), math.sin(a)
    return [(cx + rx * c * ca - ry * s * sa, cy + rx * c * sa + ry * s * ca) for c, s in _CIRCLE]


def band_points(cx: float, cy: float, rx: float, ry: float, y0: float, y1: float) -> list[Point]:
    """Outline of the slice of an ellipse between heights `y0` and `y1`."""
    y0, y1 = max(y0, cy - ry), min(y1, cy + ry)
    right: list[Point] = []
    for i in range(13):
        y = y0 + (y1 - y0) * i / 12
        half = rx * math.sqrt(max(0.0, 1 - ((y - cy) / ry) ** 2))
        right.append((half, y))
    return [(cx + h, y) for h, y in right] + [(cx - h, y) for h, y in reversed(right)]
