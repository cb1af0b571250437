"""The verb that explains: what became of every candidate of a query, in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from negatron.negatives.records import Negatives
from negatron.types import JudgedQuery, Origin, Verdict


@dataclass(frozen=True)
class Biography:
    """What became of every candidate of a query."""

    item: JudgedQuery

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return asdict(self.item)

    def __str__(self) -> str:
        lines = [f"query {self.item.query.id}: {self.item.query.text}"]
        for positive in self.item.positives:
            lines.append(
                f"  positive {positive.document.id}, teacher score {number(positive.teacher_score)}: {shortened(positive.document.content)}"
            )
        for judged in self.item.judged:
            candidate = judged.candidate
            found = "; ".join(origin_in_words(origin) for origin in candidate.origins)
            lines.append(f"  {'KEPT    ' if judged.kept else 'rejected'} {candidate.document.id}: {shortened(candidate.document.content)}")
            lines.append(f"           {found}; teacher score {number(candidate.teacher_score)}")
            lines += [f"           {verdict_in_words(verdict)}" for verdict in judged.verdicts]
        return "\n".join(lines)


def number(value: float | None) -> str:
    """Four decimals, or a dash."""
    return "-" if value is None else f"{value:.4f}"


def shortened(text: str, width: int = 90) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def origin_in_words(origin: Origin) -> str:
    """`bm25 rank 3, score 14.2000 (maker 9c1f...)`."""
    rank = f" rank {origin.rank}" if origin.rank is not None else ""
    score = f", score {origin.score:.4f}" if origin.score is not None else ""
    note = f", told {shortened(origin.note)}" if origin.note else ""
    return f"{origin.source}{rank}{score} (maker {origin.maker}, round {origin.round}){note}"


def verdict_in_words(verdict: Verdict) -> str:
    """`relative margin: keeps, 0.4100 against 0.7980`."""
    measured = f", {number(verdict.measured)} against {number(verdict.limit)}" if verdict.limit is not None else ""
    detail = f" ({verdict.detail})" if verdict.detail else ""
    return f"{verdict.rule}: {'keeps' if verdict.kept else 'rejects'}{measured}{detail}"


def explain(negatives: Negatives | Path | str, query_id: str) -> Biography:
    """The biography of each candidate of a query: origins, scores, verdicts."""
    source = negatives if isinstance(negatives, Negatives) else Negatives.open(negatives)
    return Biography(source.find(query_id))
