"""From folders of evaluations to one page, and to a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from negatron.errors import NegatronError, SettingError, nearest
from negatron.evaluation import benchmark, significance
from negatron.evaluation.benchmark import Evaluation
from negatron.evaluation.report import Arm, BrowsedCandidate, BrowsedQuery, ReportData, ScoreDistribution, write_report
from negatron.evaluation.significance import Comparison
from negatron.types import JudgedQuery
from negatron.verbs.negatives import origin_in_words, verdict_in_words


def compared(sides: Mapping[str, Evaluation], references: Mapping[str, str], measure: str, *, seed: int = 0) -> dict[str, Comparison]:
    """Each named evaluation against its reference, p-values corrected together (Holm)."""
    made = {
        name: significance.compare([sides[reference]], [sides[name]], measure, seed=seed)
        for name, reference in references.items()
        if name in sides and reference in sides and name != reference
    }
    return dict(zip(made, significance.correct(list(made.values())), strict=True))


def intervals(evaluation: Evaluation, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Measure -> 95 % bootstrap interval of its mean over queries."""
    return {str(measure): significance.mean_interval(values, seed=seed) for measure, values in evaluation.per_query.items()}


def text_table(sides: Mapping[str, Evaluation], comparisons: Mapping[str, Comparison], measure: str, second: str) -> str:
    """The comparison as lines for a terminal: value with interval, a second measure, and each arm's difference from its reference."""
    width = max(map(len, sides))
    lines = [f"{'':<{width}}  {measure:>8}  {'95 % interval':<16}  {second:>10}  difference from its reference"]
    for name, evaluation in sides.items():
        low, high = significance.mean_interval(evaluation.of(measure))
        means = {str(one): value for one, value in evaluation.means.items()}
        ending = difference_in_words(comparisons[name]) if name in comparisons else ""
        lines.append(f"{name:<{width}}  {means[measure]:8.4f}  [{low:.4f}, {high:.4f}]  {means[second]:10.4f}  {ending}".rstrip())
    return "\n".join(lines)


def difference_in_words(comparison: Comparison) -> str:
    """`+0.0310 [+0.0180, +0.0440] p = 0.0001: better than before training`."""
    said = "no visible difference from" if not comparison.visible else "better than" if comparison.difference > 0 else "WORSE than"
    return (
        f"{comparison.difference:+.4f} [{comparison.low:+.4f}, {comparison.high:+.4f}] p {significance.p_text(comparison.p)}: "
        f"{said} {comparison.name_a}"
    )


def distributions(stored: Mapping[str, Sequence[JudgedQuery]]) -> tuple[ScoreDistribution, ...]:
    """Teacher scores of each source's candidates, kept and rejected, and of the positives of the same queries."""
    found = []
    for source, items in stored.items():
        scored = [(j, j.candidate.teacher_score) for item in items for j in item.judged if j.candidate.teacher_score is not None]
        found.append(
            ScoreDistribution(
                source,
                tuple(score for j, score in scored if j.kept),
                tuple(score for j, score in scored if not j.spare),
                tuple(p.teacher_score for item in items for p in item.positives if p.teacher_score is not None),
            )
        )
    return tuple(found)


def browsed(item: JudgedQuery, *, most: int = 12, letters: int = 900) -> BrowsedQuery:
    """A query for the browser: the kept candidates, then others, at most `most`, texts cut at `letters`."""
    judged = sorted(item.judged, key=lambda j: not j.kept)[:most]
    candidates = tuple(
        BrowsedCandidate(
            j.candidate.document.content[:letters],
            j.candidate.sources,
            "; ".join(origin_in_words(origin) for origin in j.candidate.origins),
            j.candidate.teacher_score,
            j.kept,
            tuple(verdict_in_words(verdict) for verdict in j.verdicts),
        )
        for j in judged
    )
    return BrowsedQuery(item.query.text, tuple((p.document.id, p.document.content[:letters]) for p in item.positives), candidates)


def report(folder: Path, *, reference: str | None = None, measure: str = "ndcg@10", out: Path | None = None) -> Path:
    """One page that compares the evaluation folders inside `folder`; `reference` is the one that the others are compared with."""
    places = sorted(path.parent for path in folder.glob("*/scores.json"))
    if not places:
        raise NegatronError(f"{folder} holds no folder that `negatron evaluate` wrote (none with scores.json in it)")
    sides = {place.name: benchmark.read_evaluation(place) for place in places}
    first = reference or next(iter(sides))
    if first not in sides:
        raise SettingError(f"{folder} has no evaluation {first!r}{nearest(first, sides)}")
    comparisons = compared(sides, dict.fromkeys(sides, first), measure)
    arms = tuple(
        Arm(
            name,
            "baseline" if name == first else "model",
            {str(one): value for one, value in evaluation.means.items()},
            intervals(evaluation),
            comparisons.get(name),
        )
        for name, evaluation in sides.items()
    )
    some = next(iter(sides.values()))
    subtitle = f"{some.data}, split {some.split}, {some.queries:,} judged queries; differences are from {first}"
    path = out or folder / "report.html"
    write_report(ReportData(f"{len(sides)} evaluations", subtitle, arms, measure, command=f"negatron report {folder.name}"), path)
    return path
