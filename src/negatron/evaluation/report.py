"""The report: one HTML file that opens anywhere, offline, and says honestly what helped.

In: a `ReportData`, made of values that others measured. Out: one self-contained file.

1. `headline` says the result in words, from the comparisons alone.
2. The `*_figure` functions make plot descriptions (plain dicts in Plotly's JSON form). They name colours as `var(--name)`; the page's
   script puts in the value of the style sheet, so that plots follow light, dark and print.
3. `render` fills `report.html.jinja` (every text escaped) and adds Plotly's script once.

What stays true: nothing is fetched from anywhere, which the page's own Content-Security-Policy enforces, and no script runs but the ones
written here (they are named there by their SHA-256); every number of the comparison stands in a table too; nothing is told by colour
alone.
What it does not know: how any of the values came about.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from negatron.evaluation.significance import Comparison, p_text
from negatron.progress import clock
from negatron.store import write_bytes

BINS = 30
"""Bars of a score distribution."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
LABEL_WIDTH = 20
"""Letters in one line of an arm's name beside a plot."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One row of the comparison: a baseline, or a model trained in one way.

    `values` and `intervals` (95 %): by the measure's name. `comparison`: this arm (as B) against a named reference (as A), on the
    report's measure. `negatives`: how many it was trained on; `seconds`: to make them and to train; `cost` and `verdict`: in words.
    """

    name: str
    kind: Literal["baseline", "model"]
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    comparison: Comparison | None = None
    negatives: int | None = None
    seconds: float | None = None
    cost: str = ""
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """Training of one arm: the loss at each step, and the main measure on dev queries at some of them."""

    name: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    dev: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoreDistribution:
    """The teacher's scores of one source's candidates, kept and rejected, beside those of the positives."""

    source: str
    kept: tuple[float, ...]
    rejected: tuple[float, ...]
    positives: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class BrowsedCandidate:
    """A candidate as a person reads it. `origin` says who proposed it, at which rank; `verdicts` what each rule decided, in words."""

    text: str
    sources: tuple[str, ...]
    origin: str = ""
    teacher_score: float | None = None
    kept: bool = True
    verdicts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BrowsedQuery:
    """A query with its positives (id, text), everything that was proposed for it, and the rank of its best positive by arm.

    A rank of None means: not among the documents searched.
    """

    text: str
    positives: tuple[tuple[str, str], ...]
    candidates: tuple[BrowsedCandidate, ...]
    ranks: tuple[tuple[str, int | None], ...] = ()


@dataclass(frozen=True, slots=True)
class ReportData:
    """All that a report shows. `measure` is the one that the plots and comparisons are about; `facts` are shown in the order given."""

    title: str
    subtitle: str
    arms: tuple[Arm, ...]
    measure: str = "ndcg@10"
    facts: Mapping[str, str] = field(default_factory=dict)
    curves: tuple[LearningCurve, ...] = ()
    distributions: tuple[ScoreDistribution, ...] = ()
    browser: tuple[BrowsedQuery, ...] = ()
    notes: tuple[str, ...] = ()
    command: str = ""

    def to_json(self) -> str:
        """As JSON text, from which `from_json` makes the same value again: a report can be made anew without measuring anew."""
        from pydantic import TypeAdapter

        return TypeAdapter(ReportData).dump_json(self, indent=1).decode()

    @classmethod
    def from_json(cls, text: str) -> ReportData:
        """The value that `to_json` wrote. Raises pydantic's ValidationError (a ValueError) for anything else."""
        from pydantic import TypeAdapter

        return TypeAdapter(ReportData).validate_json(text)


def write_report(data: ReportData, path: Path) -> None:
    """Writes the report to `path`, whole or not at all."""
    write_bytes(path, render(data).encode("utf-8", "replace"))


def render(data: ReportData) -> str:
    """The report as HTML text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    here = Path(__file__).parent
    scripts = [get_plotlyjs(), (here / "report.js.jinja").read_text(encoding="utf-8")]
    scripts = [script.replace("\r\n", "\n").replace("\r", "\n") for script in scripts]  # as a browser reads it before it hashes
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"signed": "{:+.4f}".format, "value": "{:.4f}".format, "clock": clock, "clip": clip}
    environment.filters["p"] = lambda p: p_text(p).removeprefix("= ")
    found = figures(data)
    return environment.get_template("report.html.jinja").render(
        data=data,
        headline=headline(data),
        tiles=tiles(data),
        measures=list(dict.fromkeys(measure for arm in data.arms for measure in arm.values)),
        best=best_values(data.arms),
        compared=[arm for arm in data.arms if arm.comparison is not None],
        outcome=outcome,
        references=list(dict.fromkeys(arm.comparison.name_a for arm in data.arms if arm.comparison is not None)),
        sources=sorted({source for query in data.browser for candidate in query.candidates for source in candidate.sources}),
        figures=found,
        figures_json=Markup(script_safe(found)),
        style=Markup((here / "report.css.jinja").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        script_hashes=" ".join(f"'sha256-{sha256(script)}'" for script in scripts),
    )


def sha256(script: str) -> str:
    """Base64 of a script's SHA-256, as a Content-Security-Policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def script_safe(value: object) -> str:
    """JSON that no text in it can end the script element of.

    >>> "<" in script_safe("</script>"), json.loads(script_safe("</script>"))
    (False, '</script>')
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def clip(text: str, letters: int = 240) -> str:
    """The beginning of a text on one line, or "" where the whole is as short: then there is nothing to unfold.

    >>> clip("short"), clip("one two three", 8)
    ('', 'one two…')
    """
    flat = " ".join(text.split())
    return "" if len(flat) <= letters and text.count("\n") < 6 else flat[:letters].rstrip() + "…"


def outcome(comparison: Comparison) -> Literal["better", "worse", "none"]:
    """Whether B is visibly better or worse than A, or neither."""
    return "none" if not comparison.visible else "better" if comparison.difference > 0 else "worse"


def best_values(arms: Sequence[Arm]) -> dict[str, float]:
    """Each measure's highest value."""
    best: dict[str, float] = {}
    for arm in arms:
        for measure, value in arm.values.items():
            best[measure] = max(value, best.get(measure, value))
    return best


OUTCOMES = {"better": "{} better", "worse": "{} worse", "none": "no visible difference for {}"}


def listed(arms: Sequence[tuple[Arm, Comparison]]) -> str:
    """`dense (+0.020) and mix (+0.023)`."""
    names = [f"{arm.name} ({comparison.difference:+.3f})" for arm, comparison in arms]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def headline(data: ReportData) -> list[str]:
    """The result in a few plain sentences: what helped, what did not, what could not be seen, and who is highest of all."""
    compared = [(arm, arm.comparison) for arm in data.arms if arm.comparison is not None]
    by_reference = []
    for reference in dict.fromkeys(comparison.name_a for _, comparison in compared):
        said = {kind: [(arm, c) for arm, c in compared if c.name_a == reference and outcome(c) == kind] for kind in OUTCOMES}
        parts = [words.format(listed(said[kind])) for kind, words in OUTCOMES.items() if said[kind]]
        by_reference.append((-len(said["better"]), f"Against {reference}, on {data.measure}: {'; '.join(parts)}."))
    sentences = [sentence for _, sentence in sorted(by_reference, key=lambda pair: pair[0])]  # where something helped comes first
    ranked = sorted((arm for arm in data.arms if data.measure in arm.values), key=lambda arm: -arm.values[data.measure])
    if ranked:
        kind = "a baseline" if ranked[0].kind == "baseline" else "a trained model"
        sentences.append(f"The highest {data.measure} of all is {ranked[0].values[data.measure]:.3f}: {ranked[0].name}, {kind}.")
    if compared:
        widest = widest_blind_spot([comparison for _, comparison in compared])
        queries = max(comparison.queries for _, comparison in compared)
        sentences.append(
            f"With {queries:,} queries, a true difference below about {widest:.3f} is missed more than one time in five: "
            "“no visible difference” does not mean “no difference”."
        )
    return sentences


def widest_blind_spot(comparisons: Sequence[Comparison]) -> float:
    """The largest `smallest_visible` of the comparisons that show nothing, where it matters; of all where each shows something."""
    return max(c.smallest_visible for c in [c for c in comparisons if not c.visible] or comparisons)


def tiles(data: ReportData) -> list[tuple[str, str, str]]:
    """Four numbers to see first, as (number, label, remark)."""
    compared = [(arm, arm.comparison) for arm in data.arms if arm.comparison is not None]
    if not compared:
        return []
    arm, comparison = max(compared, key=lambda pair: pair[1].mean_b)
    widest = widest_blind_spot([c for _, c in compared])
    helped = sum(outcome(c) == "better" for _, c in compared)
    return [
        (f"{comparison.mean_b:.3f}", f"{data.measure} of {arm.name}", "the highest of the arms that were compared"),
        (f"{comparison.difference:+.3f}", f"against {comparison.name_a}", f"95 % interval {comparison.low:+.3f} to {comparison.high:+.3f}"),
        (f"{helped} of {len(compared)}", "arms visibly better", "than the reference they are compared with"),
        (f"{widest:.3f}", "smallest visible difference", f"with {comparison.queries:,} queries, 8 times in 10"),
    ]


def figures(data: ReportData) -> dict[str, dict[str, Any]]:
    """Every plot of the report under the id of its place on the page."""
    found: dict[str, dict[str, Any]] = {}
    measured = [arm for arm in data.arms if data.measure in arm.values]
    if measured:
        found["values"] = values_figure(measured, data.measure)
    if any(arm.comparison for arm in data.arms):
        found["differences"] = differences_figure([arm for arm in data.arms if arm.comparison is not None], data.measure)
    if data.curves:
        found["losses"] = lines_figure([(c.name, c.steps, c.losses) for c in data.curves], "training loss", markers=False)
    if any(curve.dev for curve in data.curves):
        curves = [(c.name, sorted(c.dev), [c.dev[step] for step in sorted(c.dev)]) for c in data.curves if c.dev]
        found["dev"] = lines_figure(curves, f"{data.measure} on dev queries", markers=True)
    return found | {f"scores-{i}": distribution_figure(one) for i, one in enumerate(data.distributions)}


def layout(height: int, **more: Any) -> dict[str, Any]:
    """What all plots share; no fonts are fetched, no background is painted."""
    return {
        "height": height,
        "margin": {"l": 10, "r": 16, "t": 34, "b": 56},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "var(--ink)"},
        "hoverlabel": {"bgcolor": "var(--card)", "bordercolor": "var(--line)", "font": {"color": "var(--ink)"}, "align": "left"},
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "xanchor": "left", "font": {"color": "var(--muted)"}},
        "dragmode": False,
        **more,
    }


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """A quiet axis."""
    colours = {"gridcolor": "var(--grid)", "linecolor": "var(--line)", "tickfont": {"color": "var(--muted)"}, "zeroline": False}
    heading = {"text": plot_text(title), "font": {"color": "var(--muted)", "size": 12}}
    return {**colours, "automargin": True, "fixedrange": True, "title": heading, **more}


def plot_text(text: str, width: int | None = None) -> str:
    """A text as Plotly may show it: Plotly reads some HTML in its labels, so everything is escaped; wrapped to `width` letters a line."""
    lines = textwrap.wrap(text, width) if width else [text]
    return "<br>".join(html.escape(line) for line in lines) or " "


def rows_axis(arms: Sequence[Arm]) -> dict[str, Any]:
    """The axis of arms, the first on top. Arms are placed by number: two of the same name stay two."""
    names = [plot_text(arm.name, LABEL_WIDTH) for arm in arms]
    ends = [len(arms) - 0.4, -0.6]
    return axis(tickvals=list(range(len(arms))), ticktext=names, range=ends, showgrid=False, tickfont={"color": "var(--ink)"})


def dots(rows: Sequence[tuple[int, float, float, float, str]], name: str, **marker: Any) -> dict[str, Any]:
    """A trace of dots with intervals. rows: (place, value, low, high, text of the label)."""
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": name,
        "x": [value for _, value, _, _, _ in rows],
        "y": [place for place, *_ in rows],
        "text": [text for *_, text in rows],
        "textposition": "top center",
        "textfont": {"size": 12, "color": "var(--ink)"},
        "cliponaxis": False,
        "marker": {"size": 11, **marker, "line": {"width": 2, "color": marker["color"]}},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [high - value for _, value, _, high, _ in rows],
            "arrayminus": [value - low for _, value, low, _, _ in rows],
            "color": marker["color"],
            "thickness": 2,
            "width": 5,
        },
        "customdata": [[low, high] for _, _, low, high, _ in rows],
        "hovertemplate": "%{x:.4f}<br>95 % interval %{customdata[0]:.4f} to %{customdata[1]:.4f}<extra></extra>",
    }


def values_figure(arms: Sequence[Arm], measure: str) -> dict[str, Any]:
    """One dot and interval for each arm; baselines hollow."""
    styles = {
        "baseline": ("baseline", {"color": "var(--baseline)", "symbol": "diamond-open"}),
        "model": ("trained", {"color": "var(--accent)", "symbol": "circle"}),
    }
    traces = []
    for kind, (name, marker) in styles.items():
        of_kind = [(i, arm) for i, arm in enumerate(arms) if arm.kind == kind]
        rows = [(i, arm.values[measure], *interval(arm, measure), f"{arm.values[measure]:.3f}") for i, arm in of_kind]
        if rows:
            traces.append(dots(rows, name, **marker))
    return {"data": traces, "layout": layout(90 + 46 * len(arms), xaxis=axis(measure), yaxis=rows_axis(arms))}


def interval(arm: Arm, measure: str) -> tuple[float, float]:
    """The arm's own interval; without width where none was measured."""
    return arm.intervals.get(measure, (arm.values[measure], arm.values[measure]))


def differences_figure(arms: Sequence[Arm], measure: str) -> dict[str, Any]:
    """One dot and interval for each compared arm, a line at no difference, a band over what could hardly be seen."""
    styles = {
        "better": ("better", {"color": "var(--better)", "symbol": "triangle-right"}),
        "worse": ("worse", {"color": "var(--worse)", "symbol": "triangle-left"}),
        "none": ("no visible difference", {"color": "var(--baseline)", "symbol": "circle-open"}),
    }
    compared = [(i, arm.comparison) for i, arm in enumerate(arms) if arm.comparison is not None]
    traces = []
    for kind, (name, marker) in styles.items():
        rows = [(i, c.difference, c.low, c.high, f"{c.difference:+.3f}") for i, c in compared if outcome(c) == kind]
        if rows:
            traces.append(dots(rows, name, **marker))
    shapes: list[dict[str, Any]] = [
        {"type": "rect", "x0": -c.smallest_visible, "x1": c.smallest_visible, "y0": i - 0.42, "y1": i + 0.42, "line": {"width": 0}}
        | {"fillcolor": "var(--band)", "layer": "below"}
        for i, c in compared
    ]
    dotted = {"color": "var(--muted)", "width": 1.5, "dash": "dot"}
    zero = {"type": "line", "x0": 0, "x1": 0, "yref": "paper", "y0": 0, "y1": 1, "line": dotted}
    x = axis(f"difference in {measure}", tickformat="+.3~f", nticks=6, tickangle=0)
    return {"data": traces, "layout": layout(90 + 46 * len(arms), xaxis=x, yaxis=rows_axis(arms), shapes=[*shapes, zero])}


def lines_figure(curves: Sequence[tuple[str, Sequence[int], Sequence[float]]], title: str, *, markers: bool) -> dict[str, Any]:
    """One line for each arm over the steps, told apart by colour and by dash (and by symbol where there are markers)."""
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers" if markers else "lines",
            "name": plot_text(name),
            "x": list(steps),
            "y": list(values),
            "line": {"color": f"var(--c{i % 6 + 1})", "dash": DASHES[i % 6], "width": 2},
            "marker": {"symbol": SYMBOLS[i % 6], "size": 8},
            "hovertemplate": "step %{x}: %{y:.4f}<extra>" + plot_text(name) + "</extra>",
        }
        for i, (name, steps, values) in enumerate(curves)
    ]
    more = {"xaxis": axis("step"), "yaxis": axis(title), "showlegend": True, "hovermode": "closest"}
    return {"data": traces, "layout": layout(330 + 12 * len(curves), **more)}


def distribution_figure(one: ScoreDistribution) -> dict[str, Any]:
    """Shares in the same bins: kept solid and rejected hatched (together 100 % of the candidates), positives as an outline (100 %)."""
    groups = {"positives": one.positives, "kept": one.kept, "rejected": one.rejected}
    every = [score for scores in groups.values() for score in scores]
    edges = np.linspace(min(every, default=0.0), max(every, default=1.0) + 1e-9, BINS + 1)
    middles = [round(float(x), 6) for x in (edges[:-1] + edges[1:]) / 2]
    candidates = len(one.kept) + len(one.rejected)
    traces: list[dict[str, Any]] = []
    for name, scores in groups.items():
        if not scores:
            continue
        shares = np.histogram(scores, edges)[0] / (len(scores) if name == "positives" else candidates)
        label = f"{name}: %{{y:.1%}} near %{{x:.3f}}<extra></extra>"
        shown = {"name": name, "x": middles, "y": [round(float(x), 6) if x else None for x in shares], "hovertemplate": label}
        traces.append(shown | (POSITIVES_LINE if name == "positives" else bars(name)))
    more = {"barmode": "stack", "bargap": 0, "xaxis": axis("teacher score"), "yaxis": axis("share", tickformat=".0%", rangemode="tozero")}
    return {"data": traces, "layout": layout(270, showlegend=True, **more)}


POSITIVES_LINE = {
    "type": "scatter",
    "mode": "lines",
    "line": {"shape": "hvh", "color": "var(--positive)", "width": 2.5},
    "connectgaps": False,
}


def bars(name: str) -> dict[str, Any]:
    """How the bars of kept and of rejected candidates look: solid, and hatched."""
    colour = f"var(--{name})"
    pattern = {"shape": "" if name == "kept" else "/", "size": 6, "solidity": 0.35, "fgcolor": colour}
    fill = colour if name == "kept" else "rgba(0,0,0,0)"
    return {"type": "bar", "opacity": 0.85, "marker": {"color": fill, "pattern": pattern, "line": {"width": 1, "color": colour}}}
