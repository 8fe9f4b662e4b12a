"""Write names beside points so that they cover neither points nor each other."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, radians, sin
from typing import Any


def label_points(
    axis: Any,
    points: Sequence[tuple[str, float, float]],
    renderer: Any,
    nameless: Sequence[tuple[float, float]] = (),
) -> list[Any]:
    """Name points, each in the nearest free place around it; a thin line leads to a name that stands off.

    :param axis: The matplotlib axes, with scales and limits already set and its figure drawn once.
    :param points: Rows of (name, x, y) in data coordinates.
    :param renderer: The figure's renderer.
    :param nameless: Further points that names must not cover, in data coordinates.
    :return: The boxes of the names in display coordinates, in the order of the points.
    """
    seats = [tuple(axis.transData.transform((x, y))) for _, x, y in points]
    crowd = [*seats, *(tuple(axis.transData.transform(point)) for point in nameless)]
    frame = axis.get_window_extent(renderer)
    boxes: list[Any] = [None] * len(points)
    # Crowded points choose first: they have the fewest free places.
    for place in sorted(range(len(points)), key=lambda i: (-_crowd(seats, i), i)):
        taken = [box for box in boxes if box is not None]
        boxes[place] = _label(axis, points[place], renderer, (frame, taken, crowd))
    return boxes


def _crowd(seats: list[Any], place: int) -> int:
    x, y = seats[place]
    return sum(abs(x - a) < 150 and abs(y - b) < 60 for a, b in seats)


def _label(axis: Any, point: tuple[str, float, float], renderer: Any, around: tuple[Any, list, list]) -> Any:
    """Write one name at the first place without a collision, or at the place with the fewest."""
    name, x, y = point
    best, least = _PLACES[0], float("inf")
    for offset in _PLACES:
        label = _written(axis, name, (x, y), offset)
        cost = _collisions(label.get_window_extent(renderer), *around)
        label.remove()
        if cost < least:
            best, least = offset, cost
        if not cost:
            break
    label = _written(axis, name, (x, y), best)
    box = label.get_window_extent(renderer)
    if max(abs(best[0]), abs(best[1])) > _NEAR:
        axis.annotate(
            "", (x, y), best[:2], textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4},
        ).set_in_layout(False)  # fmt: skip
    return box


def _written(axis: Any, name: str, point: tuple[float, float], offset: tuple[float, float, str, str]) -> Any:
    dx, dy, horizontal, vertical = offset
    label = axis.annotate(
        name, point, (dx, dy), textcoords="offset points",
        ha=horizontal, va=vertical, fontsize=8, color="#222222", zorder=2.5,
        bbox={"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 0.6},
    )  # fmt: skip
    label.set_in_layout(False)
    return label


def _collisions(box: Any, frame: Any, taken: list[Any], seats: list[Any]) -> float:
    """Weigh what a name's box covers: other names, points, and the world outside the frame."""
    roomy = box.padded(3)
    names = sum(roomy.overlaps(other) for other in taken)
    points = sum(box.padded(7).contains(*seat) for seat in seats)
    outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
    return 2.0 * names + points + 3.0 * outside


_NEAR = 12


def _ring(distance: float) -> list[tuple[float, float, str, str]]:
    """List places around a point at one distance in typographic points, sides first."""
    places = []
    for angle in (0, 180, 90, 270, 30, 150, 330, 210, 60, 120, 300, 240):
        dx, dy = distance * cos(radians(angle)), distance * sin(radians(angle))
        horizontal = "center" if abs(dx) < 1 else ("left" if dx > 0 else "right")
        vertical = "center" if abs(dy) < 1 else ("bottom" if dy > 0 else "top")
        places.append((dx, dy, horizontal, vertical))
    return places


_PLACES = [place for distance in (7, 11, 20, 30, 42, 56, 72, 90) for place in _ring(distance)]
