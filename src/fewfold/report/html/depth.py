"""Pictures of a compressed folder: over its layers, and its weights' spectra."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fewfold.optional import require
from fewfold.report.html.layers import Layer, Study
from fewfold.report.html.scatter import Picture, tidy
from fewfold.report.html.svg import SETTINGS, svg
from fewfold.report.plots import COLOURS, MARKERS

PANELS = 9
Value = Callable[[Layer], float | None]


def depth_pictures(study: Study, name: str) -> list[Picture]:
    """Ranks, bits, errors and spectra of one folder, those of them that it has.

    :param name: unique on the page.
    :raises ImportError: if matplotlib is missing.
    """
    require("matplotlib", "report")
    found = []
    if any(layer.rank for layer in study.layers):
        found.append(_over_layers(study, f"{name}-ranks", "Ranks", "rank", lambda layer: layer.rank))
    found.append(
        _over_layers(
            study, f"{name}-bits", "Stored bits", "bits for each number of the dense weight",
            lambda layer: 8 * layer.bytes / layer.dense if layer.dense else None,
            " What stores hold for several weights is not in it." if study.stores else "",
        )
    )  # fmt: skip
    if any(layer.error is not None for layer in study.layers):
        found.append(
            _over_layers(
                study, f"{name}-errors", "Errors", "relative error of the weight", lambda layer: layer.error,
                " A calibrated fit spares what the inputs use: its outputs lose less than its weights.",
            )
        )  # fmt: skip
    if any(layer.spectrum for layer in study.layers):
        found.append(_spectra(study, f"{name}-spectra"))
    return found


def _over_layers(study: Study, name: str, title: str, label: str, value: Value, remark: str = "") -> Picture:
    """Lines over depth, one for each role; weights outside of the layers are dots at the left."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    told = [(layer, height) for layer in study.layers if (height := value(layer)) is not None]
    roles = list(dict.fromkeys(layer.role for layer, _ in told))
    hints = {}
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(4.6, 4.4), layout="constrained")
        drawn = figure.subplots()
        for number, role in enumerate(roles):
            points = [(-1 if layer.layer is None else layer.layer, height) for layer, height in told
                      if layer.role == role]  # fmt: skip
            hints[f"line-{number}"] = role
            drawn.plot(
                *zip(*sorted(points), strict=True), gid=f"line-{number}", label=_tail(role), linewidth=1.2,
                markersize=5, color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[(number // len(COLOURS) + number) % len(MARKERS)],
            )  # fmt: skip
        drawn.set(xlabel="layer (−1: outside of the layers)" if _outside(told) else "layer", ylabel=label)
        drawn.set_ylim(bottom=0)
        drawn.xaxis.set_major_locator(MaxNLocator(integer=True))
        tidy(drawn)
        figure.legend(loc="outside lower left", ncols=2, frameon=False, columnspacing=1)
        markup = svg(figure, name, f"{title} of {study.folder}, layer by layer: {label}", hints)
    low, high = min(told, key=lambda one: one[1]), max(told, key=lambda one: one[1])
    caption = f"From {low[1]:.3g} ({low[0].name}) to {high[1]:.3g} ({high[0].name}).{remark}"
    return Picture(name, title, markup, caption)


def _outside(told: Sequence[tuple[Layer, float]]) -> bool:
    return any(layer.layer is None for layer, _ in told)


def _spectra(study: Study, name: str) -> Picture:
    """Small panels of singular values, one a role; lines from green (first layer) to blue (last)."""
    import matplotlib
    from matplotlib.figure import Figure

    roles = list(dict.fromkeys(layer.role for layer in study.layers if layer.spectrum))[:PANELS]
    columns = min(2, len(roles))
    rows = -(-len(roles) // columns)
    depth = max((layer.layer or 0 for layer in study.layers), default=0) or 1
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(4.6, 0.7 + 1.6 * rows), layout="constrained")
        panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
        for panel, role in zip(panels, roles, strict=False):
            for layer in (one for one in study.layers if one.role == role and one.spectrum):
                share = [place / max(1, len(layer.spectrum) - 1) for place in range(len(layer.spectrum))]
                colour = matplotlib.colormaps["viridis"](0.85 - 0.5 * (layer.layer or 0) / depth)
                panel.plot(share, [max(value, 1e-4) for value in layer.spectrum], color=colour, linewidth=1)
            panel.set(yscale="log", ylim=(1e-4, 1.5), xlim=(0, 1))
            panel.set_title(_tail(role), fontsize=9.5)
            tidy(panel)
        for panel in panels[len(roles) :]:
            panel.set_visible(False)
        figure.supxlabel("place among the singular values (0: largest, 1: smallest)", fontsize=9.5)
        figure.supylabel("over the largest", fontsize=9.5)
        markup = svg(figure, name, f"Singular values of the assembled weights of {study.folder}", {})
    return Picture(
        name, "Spectra", markup,
        "Singular values of the assembled weights over the largest one, green for the first layer, blue for the last. "
        "A curve that falls off at once has reached its rank.",
    )  # fmt: skip


def _tail(role: str, width: int = 24) -> str:
    """The end of a long role, which tells weights apart."""
    return role if len(role) <= width else "…" + role[-(width - 1) :]
