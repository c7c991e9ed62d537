"""Draw a dashboard's panels from their own queries' results, on the dashboard's own grid.

Only what a picture needs: it knows the kinds of panel, the units and the options that `panels.py` uses.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import dates, pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

PAGE, CARD, EDGE, TEXT, DIM, GRID = "#111217", "#181b1f", "#2a2e35", "#d8d9da", "#9fa3a8", "#2c3036"
PALETTE = ("#73BF69", "#F2CC0C", "#8AB8FF", "#FF780A", "#F2495C", "#5794F2", "#B877D9", "#96D98D", "#FFA6B0", "#CA95E5")
CELL = 33  # pixels of one row of the grid
WIDTH = 1500
DPI = 100
LEGEND_ROWS = 5

Series = list[tuple[dict[str, str], list[tuple[float, float]]]]
Query = Callable[[Any], Series]
"""A panel's target, to its series."""
Exemplars = Callable[[Any], list[tuple[float, float]]]
"""A panel's target, to the times and values of its exemplars."""


def draw(board: Any, query: Query, exemplars: Exemplars, file: Path) -> None:
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    height = (rows + 2) * CELL
    figure = pyplot.figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor=PAGE)
    pyplot.rcParams["font.family"] = "DejaVu Sans"
    figure.text(14 / WIDTH, 1 - 22 / height, board["title"], color=TEXT, size=15, weight="bold", va="center")
    chosen = "   ".join(f"{variable['label']}: All" for variable in board["templating"]["list"][1:])
    figure.text(1 - 14 / WIDTH, 1 - 22 / height, chosen, color=DIM, size=9.5, va="center", ha="right")
    for panel in board["panels"]:
        place = panel["gridPos"]
        left, width = place["x"] * WIDTH / 24 + 8, place["w"] * WIDTH / 24 - 8
        top, tall = (place["y"] + 1.4) * CELL, place["h"] * CELL - 8
        card = Card(figure, left, height - top - tall, min(width, WIDTH - left - 8), tall, height)
        if panel["type"] == "row":
            card.write(0, tall / 2, f"⌄  {panel['title']}", size=11, weight="bold")
            continue
        _PAINTERS[panel["type"]](card, panel, query, exemplars)
    figure.savefig(file, facecolor=PAGE)
    pyplot.close(figure)
    # A palette makes it a third of the size; of the methods, the octree keeps the lines' colours apart.
    made = Image.open(file).convert("RGB")
    made.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(file, optimize=True)


class Card:
    """A panel's place in the figure; positions in it are pixels from its lower left corner."""

    def __init__(self, figure: Figure, left: float, low: float, width: float, tall: float, height: float) -> None:
        self.figure, self.left, self.low, self.width, self.tall, self._height = figure, left, low, width, tall, height

    def fill(self, color: str) -> None:
        box = (self.left / WIDTH, self.low / self._height)
        style = f"round,pad=0,rounding_size={4 / WIDTH}"
        patch = FancyBboxPatch(
            box, self.width / WIDTH, self.tall / self._height, boxstyle=style, fc=color, ec=EDGE, lw=0.8, zorder=-1
        )
        patch.set_mutation_aspect(WIDTH / self._height)
        self.figure.add_artist(patch)

    def write(self, x: float, y: float, words: str, *, color: str = TEXT, size: float = 9, **more: Any) -> None:
        more = {"va": "center", **more}
        at = ((self.left + x) / WIDTH, (self.low + y) / self._height)
        # Grafana's words may hold a dollar sign, which would be mathematics here.
        self.figure.text(*at, words.replace("$", r"\$"), color=color, size=size, **more)

    def axes(self, left: float, low: float, right: float, top: float) -> Axes:
        box = (
            (self.left + left) / WIDTH,
            (self.low + low) / self._height,
            (self.width - left - right) / WIDTH,
            (self.tall - low - top) / self._height,
        )
        made = self.figure.add_axes(box, facecolor=CARD)
        for side in ("top", "right", "left", "bottom"):
            made.spines[side].set_visible(False)
        made.tick_params(colors=DIM, labelsize=8, length=0)
        made.tick_params(axis="x", pad=7)
        made.grid(True, color=GRID, lw=0.6)
        made.set_axisbelow(True)
        return made

    def titled(self, panel: Any) -> None:
        self.fill(CARD)
        self.write(10, self.tall - 14, panel["title"], size=9.5, weight="bold")


def show(value: float, unit: str) -> str:
    """A value as Grafana would write it, roughly."""
    if math.isnan(value):
        return "–"
    if unit == "percentunit":
        return f"{value * 100:.1f} %"
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"
    if unit == "bytes":
        for name, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if value >= size:
                return f"{value / size:.3g} {name}"
        return f"{value:.0f} B"
    text = f"{value / 1000:.3g} K" if value >= 10000 else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    return text + unit.removeprefix("suffix:") if unit.startswith("suffix:") else text


def _legend(target: Any, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), target["legendFormat"]).strip() or "value"


def _stat(card: Card, panel: Any, query: Query, _: Exemplars) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    series = query(panel["targets"][0])
    values = [value for _, points in series for _, value in points if not math.isnan(value)]
    value = values[-1] if values else math.nan
    color = "#8E8E8E"
    for step in defaults["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            color = step["color"]
    shown = show(value, defaults["unit"])
    for mapping in defaults["mappings"]:
        if mapping["type"] == "value":
            shown = mapping["options"].get(f"{value:g}", {}).get("text", shown)
    card.fill(color)
    card.write(10, card.tall - 14, panel["title"], size=9.5, weight="bold", color="#111217")
    card.write(card.width / 2, card.tall / 2 - 8, shown, size=22, weight="bold", color="#111217", ha="center")


def _graph(card: Card, panel: Any, query: Query, _: Exemplars) -> None:
    card.titled(panel)
    defaults = panel["fieldConfig"]["defaults"]
    unit, custom = defaults["unit"], defaults["custom"]
    fixed = {
        override["matcher"]["options"]: override["properties"][0]["value"]["fixedColor"]
        for override in panel["fieldConfig"]["overrides"]
    }
    found = [(_legend(target, labels), points) for target in panel["targets"] for labels, points in query(target)]
    found.sort(key=lambda entry: entry[0])
    lines = [
        (name, points, fixed.get(name, PALETTE[number % len(PALETTE)])) for number, (name, points) in enumerate(found)
    ]
    ranked = sorted(lines, key=lambda line: -max((v for _, v in line[1] if not math.isnan(v)), default=0))
    rows = min(len(ranked), LEGEND_ROWS)
    axes = card.axes(62, 30 + 15 * rows + 12, 14, 30)
    if custom.get("stacking", {}).get("mode") == "normal":
        _stack(axes, lines)
    else:
        for _, points, color in lines:
            at = [datetime.fromtimestamp(time) for time, _ in points]
            axes.plot(at, [value for _, value in points], color=color, lw=1.3)
            axes.fill_between(at, 0, [value for _, value in points], color=color, alpha=0.08, lw=0)
    low, high = axes.get_ylim()
    axes.set_ylim(defaults.get("min", low), defaults.get("max", max(high, 1e-9)))
    for step in defaults.get("thresholds", {}).get("steps", []) if "thresholdsStyle" in custom else []:
        if step["value"] is not None and step["value"] <= axes.get_ylim()[1]:
            axes.axhline(step["value"], color=step["color"], lw=1, ls="--")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value, unit)))
    _time(axes)
    edge, size = card.width - 14, 8
    card.write(edge - 80, 15 * rows + 12, "Last", color=DIM, size=size, ha="right")
    card.write(edge, 15 * rows + 12, "Max", color=DIM, size=size, ha="right")
    for row, (name, points, color) in enumerate(ranked[:rows]):
        y = 15 * (rows - row) - 3
        values = [value for _, value in points if not math.isnan(value)] or [math.nan]
        card.write(10, y, "▬", color=color, size=size)
        more = f"   (+{len(ranked) - rows} more)" if row == rows - 1 and len(ranked) > rows else ""
        card.write(26, y, name + more, size=size)
        card.write(edge - 80, y, show(values[-1], unit), size=size, ha="right")
        card.write(edge, y, show(max(values), unit), size=size, ha="right")


def _stack(axes: Axes, lines: list[tuple[str, list[tuple[float, float]], str]]) -> None:
    times = sorted({time for _, points, _ in lines for time, _ in points})
    at = [datetime.fromtimestamp(time) for time in times]
    floor = np.zeros(len(times))
    for _, points, color in lines:
        known = dict(points)
        top = floor + np.nan_to_num([known.get(time, 0.0) for time in times])
        axes.fill_between(at, floor, top, color=color, alpha=0.6, lw=0)
        axes.plot(at, np.where(top > floor, top, np.nan), color=color, lw=1)
        floor = top


def _heatmap(card: Card, panel: Any, query: Query, exemplars: Exemplars) -> None:
    card.titled(panel)
    target = panel["targets"][0]
    found = sorted(query(target), key=lambda entry: float(entry[0]["le"]))
    bounds = [float(labels["le"]) for labels, _ in found]
    times = sorted({time for _, points in found for time, _ in points})
    grid = np.zeros((len(bounds), len(times)))
    for row, (_, points) in enumerate(found):
        known = dict(points)
        grid[row] = np.nan_to_num([known.get(time, 0.0) for time in times])
    grid = np.diff(grid, axis=0, prepend=0).clip(min=0)
    used = np.flatnonzero(grid.sum(axis=1))
    first, last = int(used.min()), int(used.max()) + 1
    axes = card.axes(62, 34, 14, 30)
    axes.grid(False)
    at = [dates.date2num(datetime.fromtimestamp(time)) for time in times]
    shown = np.ma.masked_equal(grid[first:last], 0)
    axes.pcolormesh(at, np.arange(first, last) + 0.5, shown, cmap="magma", vmin=-0.15 * grid.max(), shading="nearest")
    dots = exemplars(target)
    rows = [float(np.searchsorted(bounds, value)) + 0.5 for _, value in dots]
    moments = [dates.date2num(datetime.fromtimestamp(time)) for time, _ in dots]
    axes.scatter(moments, rows, s=15, marker="D", color="#FF780A", edgecolor=PAGE, lw=0.5)
    axes.set_ylim(first, last)
    axes.set_yticks(range(first + 1, last + 1), [show(bounds[row], "s") for row in range(first, last)])
    axes.xaxis_date()
    _time(axes)


def _table(card: Card, panel: Any, query: Query, _: Exemplars) -> None:
    card.titled(panel)
    names = panel["transformations"][1]["options"]["renameByName"]
    columns = list(names.values())
    units = {o["matcher"]["options"]: o["properties"][0]["value"] for o in panel["fieldConfig"]["overrides"]}
    merged: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    for column, target in zip(columns, panel["targets"], strict=True):
        for labels, points in query(target):
            merged.setdefault(tuple(sorted(labels.items())), {})[column] = points[-1][1]
    heads = [name for name, _ in next(iter(merged), ())]
    order = panel["options"]["sortBy"][0]["displayName"]
    ranked = sorted(merged.items(), key=lambda row: -np.nan_to_num(row[1].get(order, 0)))
    body = [
        [value for _, value in labels] + [show(values.get(c, math.nan), units[c]) for c in columns]
        for labels, values in ranked[: int((card.tall - 60) // 22)]
    ]
    lengths = [max(map(len, cells)) + 4 for cells in zip(heads + columns, *body, strict=True)]
    starts = [10 + (card.width - 20) * sum(lengths[:n]) / sum(lengths) for n in range(len(lengths))]
    for x, head in zip(starts, heads + columns, strict=True):
        card.write(x, card.tall - 40, head, color="#6E9FFF", size=8.5, weight="bold")
    for row, cells in enumerate(body):
        for x, cell in zip(starts, cells, strict=True):
            card.write(x, card.tall - 64 - 22 * row, cell, size=8.5)


def _text(card: Card, panel: Any, _: Query, __: Exemplars) -> None:
    card.titled(panel)
    y, code = card.tall - 42, False
    for line in panel["options"]["content"].splitlines():
        if line.startswith("```"):
            code = not code
            continue
        plain = line if code else re.sub(r"[*`]", "", line)
        for part in textwrap.wrap(plain, 62 if code else 76) or [""]:
            family = "DejaVu Sans Mono" if code else "DejaVu Sans"
            card.write(10, y, part, size=7.6, family=family, color="#9ec3ff" if code else TEXT)
            y -= 14 if part else 9


def _time(axes: Axes) -> None:
    axes.xaxis.set_major_locator(dates.AutoDateLocator(minticks=3, maxticks=6))
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M:%S"))
    axes.margins(x=0)


_PAINTERS: dict[str, Callable[[Card, Any, Query, Exemplars], None]] = {
    "stat": _stat,
    "timeseries": _graph,
    "heatmap": _heatmap,
    "table": _table,
    "text": _text,
}
