"""The pictures, drawn with Matplotlib's object interface (no global state, no display)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GREEN, _GREY, _INK = "#5a8f00", "#b0b5bd", "#22262b"


def _figure(width: float = 7.0, height: float = 3.6) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: Figure, file: Path) -> str:
    figure.savefig(file, metadata={"Software": None})
    return file.name


def loss_curve(rows: Sequence[Mapping[str, Any]], file: Path) -> str:
    """Loss per step, validation loss where there is one, learning rate on the right axis."""
    figure, axes = _figure()
    train = [(r["step"], r["loss"]) for r in rows if "loss" in r]
    axes.plot(*zip(*train, strict=True), color=_GREEN, linewidth=1.6, label="loss")
    held = [(r["step"], r["val_loss"]) for r in rows if "val_loss" in r]
    if held:
        axes.plot(*zip(*held, strict=True), color=_INK, marker="o", markersize=3, linewidth=1, label="validation loss")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    rate = [(r["step"], r["lr"]) for r in rows if "lr" in r]
    if rate:
        right = axes.twinx()
        right.plot(*zip(*rate, strict=True), color=_GREY, linewidth=1, linestyle="--")
        right.set_ylabel("learning rate", color="#7d838c")
        right.tick_params(colors="#7d838c")
        right.spines["top"].set_visible(False)
        right.set_ylim(bottom=0)
    axes.set_title(f"loss {train[0][1]:.2f} → {train[-1][1]:.3f} in {train[-1][0]} steps", loc="left", color=_INK)
    if held:
        axes.legend(frameon=False)
    return _save(figure, file)


def scores(facts: Mapping[str, Any], file: Path) -> str:
    """A bar per task with its standard error; the baseline beside it and the level of chance, where known."""
    now = facts["scores"]
    before = any(s.get("baseline") for s in now)
    figure, axes = _figure(max(4.5, 1.6 + 1.7 * len(now)), 3.8)
    width = 0.36 if before else 0.55
    for i, s in enumerate(now):
        for entry, offset, colour in (
            (s.get("baseline"), -width / 2, _GREY),
            (s, width / 2 if before else 0.0, _GREEN),
        ):
            if not entry:
                continue
            top = float(entry["value"])
            axes.bar(i + offset, top, width, color=colour, yerr=entry.get("stderr") or 0, capsize=3, ecolor=_INK)
            error = float(entry.get("stderr") or 0)
            axes.annotate(
                _label(top),
                (i + offset, top + error),
                ha="center",
                va="bottom",
                xytext=(0, 2),
                textcoords="offset points",
            )
        if isinstance(s.get("chance"), int | float):
            axes.hlines(s["chance"], i - 0.45, i + 0.45, colors="#c0392b", linestyles=":", linewidth=1.3)
    axes.set_xticks(range(len(now)), [f"{s['task']}\n{s['metric']}, n = {s['n']}" for s in now])
    axes.set_xlim(-0.6, len(now) - 0.4)
    if all(0 <= float(e["value"]) <= 1 for e in now):
        axes.set_ylim(0, 1.12)
        axes.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    handles = _legend(before, any(isinstance(s.get("chance"), int | float) for s in now))
    if handles:
        axes.legend(handles=handles, frameon=False, loc="upper left", ncols=len(handles), bbox_to_anchor=(0, 1.16))
    return _save(figure, file)


def attrition(removed: Mapping[str, int], kept: int, file: Path) -> str:
    """How many rows each filter removed, and how many are left."""
    names = [*removed, "kept"]
    counts = [*removed.values(), kept]
    figure, axes = _figure(7.0, 1.2 + 0.42 * len(names))
    axes.grid(visible=False)
    axes.barh(names, counts, color=[*[_GREY] * len(removed), _GREEN])
    axes.invert_yaxis()
    for i, count in enumerate(counts):
        axes.annotate(f"{count:,}", (count, i), va="center", xytext=(4, 0), textcoords="offset points")
    axes.margins(x=0.12)
    axes.set_xlabel("rows")
    return _save(figure, file)


def histogram(binned: Mapping[str, Any], x: str, y: str, file: Path) -> str:
    """Counts between edges, as facts keep them: ``{"edges": [...], "counts": [...]}``.

    A last bin that is wider than the first is the tail: it is drawn as wide as the others, in grey.
    """
    edges, counts = list(binned["edges"]), list(binned["counts"])
    figure, axes = _figure(6.0, 3.0)
    width = edges[1] - edges[0]
    tail = len(counts) > 1 and edges[-1] - edges[-2] > width
    cut = len(counts) - tail
    axes.stairs(counts[:cut], edges[: cut + 1], fill=True, color=_GREEN)
    if tail:
        axes.stairs(counts[-1:], [edges[-2], edges[-2] + width], fill=True, color=_GREY)
        x += f" (grey: {edges[-2]:,} to {edges[-1] - 1:,})"
    axes.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
    axes.yaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return _save(figure, file)


def bars(counts: Mapping[str, int | float], x: str, file: Path, limit: int = 20) -> str:
    """One horizontal bar per name, the first ``limit`` of them."""
    names, values = list(counts)[:limit], list(counts.values())[:limit]
    figure, axes = _figure(6.0, 1.0 + 0.36 * len(names))
    axes.grid(visible=False)
    axes.barh(names, values, color=_GREEN)
    axes.invert_yaxis()
    for i, value in enumerate(values):
        text = f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
        axes.annotate(text, (value, i), va="center", xytext=(4, 0), textcoords="offset points")
    axes.margins(x=0.14)
    axes.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}" if v >= 10 or v == int(v) else f"{v:g}")
    axes.set_xlabel(x)
    return _save(figure, file)


def _label(value: float) -> str:
    return f"{value:.1%}" if 0 <= value <= 1 else f"{value:.3g}"


def _legend(before: bool, chance: bool) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=_GREY, label="before"), Patch(color=_GREEN, label="after")] if before else []
    if chance:
        handles.append(Line2D([], [], color="#c0392b", linestyle=":", label="chance"))
    return handles
