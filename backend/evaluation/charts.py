"""Draws SVG charts: curves over training steps or over the number of examples, and bars. Does not import torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

_WIDTH, _HEIGHT = 860, 380
_LEFT, _TOP, _PLOT_WIDTH, _PLOT_HEIGHT, _GAP = 46, 36, 280, 290, 60
_COLORS = ("#1b6ca8", "#d1495b", "#2e933c", "#8f5aa8", "#e08e1b", "#4a4a4a", "#17a2a2", "#a0522d", "#7a8b00")


@dataclass(frozen=True, slots=True)
class Bar:
    """One horizontal bar. A highlighted bar has another colour."""

    name: str
    value: float
    highlighted: bool


@dataclass(frozen=True, slots=True)
class Line:
    """One curve. `points` are (x, y)."""

    name: str
    points: Sequence[tuple[float, float]]


def write_curve(log: Path, out: Path) -> None:
    """Draw the curves of a `training-log.jsonl` (see `pretraining.trainer`) into an SVG file."""
    reports = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [report["step"] for report in reports]

    def lines(field: str) -> list[Line]:
        names = reports[-1][field]
        return [
            Line(name, [(s, r[field][name]) for s, r in zip(steps, reports, strict=True) if name in r[field]])
            for name in names
        ]

    out.write_text(draw(lines("losses"), lines("f1")), encoding="utf-8")


def draw(losses: Sequence[Line], scores: Sequence[Line]) -> str:
    """Two plots side by side: losses from 0, scores from 0 to 1."""
    highest = max((y for line in losses for _, y in line.points), default=1.0)
    middle = _LEFT + _PLOT_WIDTH + _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        *_plot(_LEFT, "loss", losses, highest, "step {:,.0f}"),
        *_plot(middle, "held-out span F1", scores, 1.0, "step {:,.0f}"),
        *_legend(middle + _PLOT_WIDTH + 14, {"loss": losses, "F1": scores}),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def draw_scores(title: str, lines: Sequence[Line], last: str) -> str:
    """One plot of scores from 0 to 1. `last` is a format for the largest x, which stands below the axis."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH // 2 + 120} {_HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH // 2 + 120}" height="{_HEIGHT}" fill="white"/>',
        *_plot(_LEFT, title, lines, 1.0, last),
        *_legend(_LEFT + _PLOT_WIDTH + 14, {"F1": lines}),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def draw_bars(title: str, bars: Sequence[Bar], unit: str) -> str:
    """Horizontal bars with their values. `unit` follows each value."""
    longest = max(bar.value for bar in bars)
    rows = []
    for index, bar in enumerate(bars):
        y, width = 40 + 22 * index, 360 * bar.value / longest
        colour = "#2a9d8f" if bar.highlighted else "#9aa5b1"
        rows.append(
            f'<text x="338" y="{y + 12}" text-anchor="end">{escape(bar.name)}</text>'
            f'<rect x="346" y="{y}" width="{width:.1f}" height="16" fill="{colour}"/>'
            f'<text x="{352 + width:.1f}" y="{y + 12}">{bar.value:.1f}{unit}</text>'
        )
    height = 52 + 22 * len(bars)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="780" height="{height}" font-family="sans-serif" '
        'font-size="12">'
        f'<rect width="780" height="{height}" fill="white"/>'
        f'<text x="346" y="24" font-size="14">{escape(title)}</text>'
        f"{''.join(rows)}</svg>\n"
    )


def _plot(left: int, title: str, lines: Sequence[Line], highest: float, last_x: str) -> list[str]:
    last = max((x for line in lines for x, _ in line.points), default=1) or 1
    bottom = _TOP + _PLOT_HEIGHT

    def at(x: float, y: float) -> str:
        return f"{left + _PLOT_WIDTH * x / last:.1f},{bottom - _PLOT_HEIGHT * y / highest:.1f}"

    parts = [f'<text x="{left}" y="{_TOP - 12}" font-weight="bold">{escape(title)}</text>']
    for tick in range(6):
        y = bottom - _PLOT_HEIGHT * tick / 5
        parts.append(f'<line x1="{left}" x2="{left + _PLOT_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{highest * tick / 5:.2g}</text>')
    parts.append(
        f'<text x="{left + _PLOT_WIDTH}" y="{bottom + 18}" text-anchor="end">{escape(last_x.format(last))}</text>'
    )
    for line, color in zip(lines, _COLORS, strict=False):
        points = " ".join(at(x, y) for x, y in line.points)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.6"/>')
    return parts


def _legend(left: int, groups: Mapping[str, Sequence[Line]]) -> list[str]:
    parts, y = [], _TOP
    for title, lines in groups.items():
        parts.append(f'<text x="{left}" y="{y}" font-weight="bold">{title}</text>')
        for line, color in zip(lines, _COLORS, strict=False):
            y += 16
            parts.append(f'<rect x="{left}" y="{y - 8}" width="10" height="8" fill="{color}"/>')
            parts.append(f'<text x="{left + 15}" y="{y}">{escape(line.name)}</text>')
        y += 28
    return parts
