"""Draws the finest defects of the generated demo data: hair cracks, pits and fine scratches.

They are a few pixels wide at the size for which their product was conceived, and never thinner
than a pixel at smaller ones. Their contrast is close to that of the surface's own texture.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ssray.data.demo.defects import Canvas, Stages, curve, distance_to, shifted, sign
from ssray.data.demo.surfaces import Floats, Noise, Specimen, inside, smoothstep

_STEP = 0.01  # length of the straight pieces of a crack
_MARGIN = 0.02  # beyond this distance from a line nothing is drawn


def crack(specimen: Specimen, clean: Floats, canvas: Canvas, rng: np.random.Generator) -> Stages:
    """Draws a hair crack: a dark line that meanders, branches and here and there almost closes.

    The line is 0.1 to 0.6 long and at most 0.0065 wide, in shares of the image's shorter side:
    up to three pixels of 500. Its branches are at most half as long.
    """
    heading = rng.uniform(0, 2 * np.pi)
    main = _meander(rng.uniform(0.1, 0.6), heading, rng)
    room = np.array([1, canvas.height]) - 2 * _MARGIN
    main = main - main.min(axis=0) + _MARGIN + rng.uniform(0, room - np.ptp(main, axis=0))
    lines = [main]
    for _ in range(rng.integers(0, 3)):
        root = main[int(rng.uniform(0.2, 0.8) * len(main))]
        length = rng.uniform(0.15, 0.5) * _STEP * len(main)
        lines.append(root + _meander(length, heading + sign(rng) * rng.uniform(0.5, 1.1), rng))
    width, cover = rng.uniform(0.003, 0.0065), np.zeros_like(canvas.x)
    for line in lines:
        cover = np.maximum(cover, _hair(line, width, canvas, rng))
    cover = cover * specimen.solid(canvas.x, canvas.y)
    return (clean * (1 - rng.uniform(0.24, 0.36) * cover)[..., None],)


def pit(specimen: Specimen, clean: Floats, canvas: Canvas, rng: np.random.Generator) -> Stages:
    """Draws a nest of up to four small pits, dark with a light rim towards the lower right."""
    nest, surface = np.array(specimen.anchor(rng)), clean.copy()
    for _ in range(rng.integers(1, 5)):
        centre = nest + rng.normal(0, 0.018, 2)
        radius = max(rng.uniform(0.005, 0.01), 1.5 * canvas.pixel)
        near, window = _around(centre[None], 3 * radius, canvas)
        x, y = (near.x - centre[0]) / radius, (near.y - centre[1]) / radius
        outline = 0.3 * Noise(rng)(x, y)
        floor = inside(np.hypot(x, y) - 1 + outline, 0.6)
        rim = inside(np.hypot(x - 0.5, y - 0.5) - 1.1 + outline, 0.6) * (1 - floor)
        depth = rng.uniform(0.22, 0.4)
        surface[window] *= (1 + depth * (0.4 * rim - floor))[..., None]
    return (surface,)


def scratch(
    specimen: Specimen,
    clean: Floats,
    canvas: Canvas,
    rng: np.random.Generator,
    *,
    length: tuple[float, float],
) -> Stages:
    """Draws a fine scratch, almost straight, lighter or darker; it skips where it is shallow.

    Args:
        specimen: the product.
        clean: its surface, (H, W, 3).
        canvas: the points of the surface.
        rng: draws everything else.
        length: the least and the largest length, as shares of the image's shorter side.
    """
    line = curve(specimen.anchor(rng), rng.uniform(*length), 0.04, rng)
    cover = _hair(line, rng.uniform(0.003, 0.006), canvas, rng)
    cover = cover * specimen.solid(canvas.x, canvas.y)
    return (shifted(clean, cover, sign(rng) * rng.uniform(0.1, 0.18)),)


def _meander(length: float, heading: float, rng: np.random.Generator) -> Floats:
    """Draws the (N, 2) points of a path from (0, 0) of that length, which wanders about a heading.

    Its direction is an autoregressive process: what turned it is forgotten after some steps.
    """
    turn, headings = 0.0, []
    for kick in rng.normal(0, 0.4, max(2, round(length / _STEP))):
        turn = 0.85 * turn + kick
        headings.append(heading + turn)
    steps = _STEP * np.stack((np.cos(headings), np.sin(headings)), axis=1)
    return np.concatenate((np.zeros((1, 2)), np.cumsum(steps, axis=0)))


def _hair(points: Floats, width: float, canvas: Canvas, rng: np.random.Generator) -> Floats:
    """Returns the coverage, (H, W) in [0, 1], of a line that tapers to its ends.

    Along the line width and depth vary smoothly, the width from a half to all of ``width`` but
    not below a pixel.
    """
    near, window = _around(points, _MARGIN, canvas)
    distance, position = distance_to(points, near)
    noise, row = Noise(rng), np.zeros_like(position)
    ends = smoothstep(position / 0.15) * smoothstep((1 - position) / 0.15)
    local = width * ends * (0.75 + 0.25 * noise(12 * position, row))
    local = np.maximum(local, canvas.pixel)
    depth = np.clip(0.75 + 0.5 * noise(9 * position + 30, row + 5), 0.5, 1)
    cover = np.zeros_like(canvas.x)
    cover[window] = inside(distance - 0.5 * local, canvas.pixel) * depth * ends
    return cover


def _around(points: Floats, margin: float, canvas: Canvas) -> tuple[Canvas, tuple[slice, slice]]:
    """Returns the part of a canvas that is near to (N, 2) points, and its rows and columns."""
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    columns = slice(*np.searchsorted(canvas.x[0], (low[0], high[0])))
    rows = slice(*np.searchsorted(canvas.y[:, 0], (low[1], high[1])))
    x, y = canvas.x[rows, columns], canvas.y[rows, columns]
    return replace(canvas, x=x, y=y), (rows, columns)
