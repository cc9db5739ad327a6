"""The SVG: for each work a bar per server, as a ratio to the best peer."""

from html import escape

from .report import number, title
from .works import OURS, WORKS

WIDTH = 860
LABEL_WIDTH = 130
FIGURE_WIDTH = 150
BAR_HEIGHT, BAR_STEP = 13, 18
TITLE_HEIGHT = 34
TOP, BOTTOM = 70, 18
MARGIN = 20

# It brings its own ground, and is the same on a light page and on a dark one.
GROUND, TEXT, FAINT, LINE = "#ffffff", "#1f2328", "#59636e", "#c4cad1"
LEGEND = "Blue: serve-here. Grey: the others. Yellow: no server, or hardly any, around the same script."
COLOURS = {"ours": "#0b6bcb", "peer": "#9aa4af", "floor": "#d9a441"}


def draw(report):
    """The chart of all works with a load in the report."""
    groups = [(work, bars(report, work.name)) for work in WORKS if work.name in report.rows]
    groups = [(work, rows) for work, rows in groups if rows]
    height = TOP + BOTTOM + sum(TITLE_HEIGHT + BAR_STEP * len(rows) for _, rows in groups)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{TEXT}" role="img">',
        "<title>Requests per second of serve-here and other servers, as a ratio to the best of the others</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="{GROUND}"/>',
        text(MARGIN, 26, "Requests per second, as a ratio to the best other server", size=16, weight="bold"),
        text(MARGIN, 44, about(report), colour=FAINT, size=11),
        text(MARGIN, 60, LEGEND, colour=FAINT, size=11),
    ]
    y = TOP
    for work, rows in groups:
        parts += group(y, work, rows)
        y += TITLE_HEIGHT + BAR_STEP * len(rows)
    return "\n".join([*parts, "</svg>"]) + "\n"


def about(report):
    facts = dict(report.environment)
    return f"{facts['machine']}, {facts['kernel']}; {facts['length']}; load generator on the same machine"


def bars(report, name):
    """Name, rate, ratio and colour of each row, the fastest first."""
    best = report.base(name, "rate")
    rows = [row for row in report.rows[name] if row.rate]
    if best is None or not best.rate:
        return []
    rows.sort(key=lambda row: -row.rate)
    return [(row.server, row.rate, row.rate / best.rate, colour(row)) for row in rows]


def colour(row):
    return COLOURS["peer" if row.is_peer else "ours" if row.server.startswith(OURS) else "floor"]


def group(y, work, rows):
    left = MARGIN + LABEL_WIDTH
    room = WIDTH - left - FIGURE_WIDTH - MARGIN
    # Every work has its own scale: the longest bar fills the room.
    scale = room / max(max(ratio for _, _, ratio, _ in rows), 1)
    other_base = f", as a ratio to {work.base}" if work.base else ""
    parts = [text(MARGIN, y + 22, title(work.name) + other_base, size=13, weight="bold")]
    y += TITLE_HEIGHT
    one = left + scale
    parts.append(
        f'<line x1="{one:.1f}" y1="{y - 4}" x2="{one:.1f}" y2="{y + BAR_STEP * len(rows) - 2}" stroke="{LINE}" '
        'stroke-dasharray="3 3"/>'
    )
    for server, rate, ratio, fill in rows:
        width = max(ratio * scale, 1)
        weight = "bold" if server == OURS else "normal"
        parts.append(text(left - 8, y + 11, server, anchor="end", weight=weight))
        parts.append(f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}" rx="2" fill="{fill}"/>')
        parts.append(text(left + width + 6, y + 11, f"{ratio:.2f} ({number(rate)}/s)", colour=FAINT, size=11))
        y += BAR_STEP
    return parts


def text(x, y, content, colour=TEXT, size=12, anchor="start", weight="normal"):
    return (
        f'<text x="{x:.1f}" y="{y}" fill="{colour}" font-size="{size}" text-anchor="{anchor}" '
        # A rim, so that the line of the best peer does not cross the figures.
        f'font-weight="{weight}" stroke="{GROUND}" stroke-width="3" paint-order="stroke">{escape(content)}</text>'
    )
