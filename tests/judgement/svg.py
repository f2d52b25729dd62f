"""Line drawings as text: what a page of Markdown shows, small, the same bytes each time, and read in any reader.

A plotting library would be one more dependency for two drawings, and its files change with its version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

FONT = "font-family='sans-serif' font-size='12'"
INK, FAINT = "#333", "#ddd"
Point = tuple[float, float]


@dataclass
class Drawing:
    """In pixels, from the upper left."""

    width: int
    height: int
    title: str  # for those who cannot see it
    parts: list[str] = field(default_factory=list)

    def line(self, start: Point, end: Point, colour: str = INK, dash: str = "") -> None:
        (x1, y1), (x2, y2) = start, end
        dashed = f" stroke-dasharray='{dash}'" if dash else ""
        ends = f"x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}'"
        self.parts.append(f"<line {ends} stroke='{colour}'{dashed}/>")

    def path(self, points: Sequence[Point], colour: str) -> None:
        told = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f"<polyline points='{told}' fill='none' stroke='{colour}' stroke-width='1.5'/>")

    def dot(self, at: Point, radius: float, colour: str) -> None:
        self.parts.append(f"<circle cx='{at[0]:.1f}' cy='{at[1]:.1f}' r='{radius:.1f}' fill='{colour}'/>")

    def text(
        self, at: Point, words: str, anchor: str = "start", colour: str = INK, *, bold: bool = False
    ) -> None:
        weight = " font-weight='bold'" if bold else ""
        where = f"x='{at[0]:.1f}' y='{at[1]:.1f}' text-anchor='{anchor}' fill='{colour}'{weight}"
        self.parts.append(f"<text {where}>{escape(words)}</text>")

    def __str__(self) -> str:
        size = f"viewBox='0 0 {self.width} {self.height}' width='{self.width}' height='{self.height}'"
        head = f"<svg xmlns='http://www.w3.org/2000/svg' {size} {FONT} role='img'>"
        paper = f"<rect width='{self.width}' height='{self.height}' fill='white'/>"
        return "\n".join([head, f"<title>{escape(self.title)}</title>", paper, *self.parts, "</svg>", ""])
