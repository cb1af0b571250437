"""Is B better than A, or did the draw of the queries make it look so? Paired comparisons of per-query values.

In: the same measure on the same queries on both sides, one or several seeds a side. Out: a `Comparison`, which prints as a sentence and
as a table.

1. Seeds of a side are averaged per query, before anything is tested: the query is the unit that was drawn, not the seed.
2. The differences B - A go to a paired randomisation test (the p-value), a bootstrap (the interval) and a paired t-test (beside it).
3. The smallest difference that this many queries could have shown is stated, whatever came out.
4. Over a family of comparisons the p-values are corrected by Holm's method.

Several data sets (`pooled`) are compared by the mean over sets of each set's mean difference; signs are flipped and queries drawn again
within each set. One data set is the same with one set in it, so the formulas stand once.

What stays true: comparing B with A gives the same p-value as A with B; neither the order of the queries nor that of earlier draws moves a
number. What it does not know: whether the two sides were trained fairly; seeds of training beyond those given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negatron.errors import DataError, NegatronError
from negatron.evaluation.benchmark import SCORES, Evaluation, read_evaluation
from negatron.evaluation.measures import DEFAULT_MEASURES, Measure
from negatron.identity import stream

Float64Array = NDArray[np.float64]
Values = Mapping[str, float]
"""query id -> value of one measure."""

ALPHA = 0.05
"""Below this p-value (after correction) a difference is called visible."""
POWER = 0.8
"""Chance to see the smallest visible difference when it is there; the custom since Cohen 1988."""
PERMUTATIONS = 100_000
EXACT_UP_TO = 16
"""Queries that differ, up to which all 2^n sign patterns are counted instead of drawn."""
RESAMPLES = 9_999
"""Bootstrap draws: scipy's default."""
BLOCK = 4_000_000
"""Numbers held at a time while drawing (32 MB)."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """B against A on one measure; a positive `difference` says that B is better.

    `low`, `high`: 95 % bootstrap interval of the difference. `p_value`: paired randomisation test, two-sided; `exact` when every sign
    pattern was counted. `p_t`: paired t-test. `p_holm`: `p_value` corrected for the comparisons made together, None when it stands alone.
    `smallest_visible`: the true difference that this comparison shows (p < 0.05) with a chance of 80 %. `wins`: queries on which B is
    better. `data`: the data sets; with several, means and difference are means over sets. `interval_kind`: BCa or percentile.
    """

    measure: str
    name_a: str
    name_b: str
    queries: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    p_value: float
    p_t: float
    smallest_visible: float
    wins: int
    losses: int
    ties: int
    seeds_a: int = 1
    seeds_b: int = 1
    exact: bool = False
    p_holm: float | None = None
    data: tuple[str, ...] = ()
    interval_kind: str = "BCa"

    @property
    def p(self) -> float:
        """The p-value to decide by: corrected where there is a correction."""
        return self.p_value if self.p_holm is None else self.p_holm

    @property
    def visible(self) -> bool:
        """True when the difference is significant at the 5 % level, after correction."""
        return self.p < ALPHA

    @property
    def sentence(self) -> str:
        """The result in words, never more than the numbers carry."""
        if self.wins == self.losses == 0:
            return f"{self.name_b} and {self.name_a} have the same {self.measure} on each of the {self.queries:,} queries"
        kind = "p (Holm)" if self.p_holm is not None else "p"
        ending = (
            f"{kind} {p_text(self.p)}, n = {self.queries:,}; with so many queries, a true difference below {self.smallest_visible:.4f} "
        )
        ending += "is missed more than one time in five"
        if not self.visible:
            numbers = f"B - A = {self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"
            return f"No visible difference between A = {self.name_a} and B = {self.name_b} on {self.measure}: {numbers}, {ending}"
        better, worse = (self.name_b, self.name_a) if self.difference > 0 else (self.name_a, self.name_b)
        low, high = (self.low, self.high) if self.difference > 0 else (-self.high, -self.low)
        return f"{better} is better than {worse} on {self.measure} by {abs(self.difference):.4f} [{low:.4f}, {high:.4f}], {ending}"

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values, with the sentence; `from_json` reads it again."""
        return {**asdict(self), "data": list(self.data), "visible": self.visible, "sentence": self.sentence}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Comparison:
        """The comparison that `as_json` wrote."""
        fields = {key: value for key, value in raw.items() if key in cls.__slots__}
        return cls(**{**fields, "data": tuple(fields.get("data", ()))})

    def __str__(self) -> str:
        test = f"all {2 ** (self.wins + self.losses):,} sign patterns" if self.exact else f"{PERMUTATIONS:,} sign flips"
        rows = [
            (f"A  {self.name_a}", f"{self.mean_a:.4f}" + seeds_text(self.seeds_a)),
            (f"B  {self.name_b}", f"{self.mean_b:.4f}" + seeds_text(self.seeds_b)),
            ("B - A", f"{self.difference:+.4f}"),
            (f"95 % interval ({self.interval_kind} bootstrap)", f"{self.low:+.4f} to {self.high:+.4f}"),
            (f"p, paired randomisation ({test})", p_text(self.p_value).removeprefix("= ")),
            *([("p, Holm", p_text(self.p_holm).removeprefix("= "))] if self.p_holm is not None else []),
            ("p, paired t-test", p_text(self.p_t).removeprefix("= ")),
            ("queries: B better / A better / equal", f"{self.wins:,} / {self.losses:,} / {self.ties:,}"),
            ("smallest visible difference", f"{self.smallest_visible:.4f}"),
        ]
        width = max(len(label) for label, _ in rows)
        head = f"{self.measure}, {self.queries:,} queries" + (f" of {', '.join(self.data)}" if self.data else "")
        return "\n".join([head, *(f"  {label:<{width}}  {value}" for label, value in rows), self.sentence])


def p_text(p: float) -> str:
    """`= 0.013`, or `< 0.0001` below that.

    >>> p_text(0.0132), p_text(0.00001)
    ('= 0.013', '< 0.0001')
    """
    return "< 0.0001" if p < 0.0001 else f"= {p:.2g}" if p < 0.1 else f"= {p:.2f}"


def seeds_text(seeds: int) -> str:
    """`  (mean of 3 seeds)` where there are several."""
    return f"  (mean of {seeds} seeds)" if seeds > 1 else ""


def compare(
    a: Sequence[Evaluation],
    b: Sequence[Evaluation],
    measure: Measure | str = DEFAULT_MEASURES[0],
    *,
    name_a: str = "",
    name_b: str = "",
    seed: int = 0,
) -> Comparison:
    """B against A on the same queries of one data set; each side is one evaluation, or one for each seed.

    Raises NegatronError, with examples, when the evaluations are not of the same split, queries and judgements.
    """
    check_comparable([*a, *b])
    strata = {a[0].data: ([one.of(measure) for one in a], [one.of(measure) for one in b])}
    return pooled(strata, str(measure), name_a=name_a or a[0].model, name_b=name_b or b[0].model, seed=seed)


def check_comparable(evaluations: Sequence[Evaluation]) -> None:
    """Raises NegatronError unless all are of the same split and the same judgements."""
    if not evaluations:
        raise NegatronError("there is nothing to compare: each side needs at least one evaluation")
    first = evaluations[0]
    for other in evaluations[1:]:
        same_queries(dict.fromkeys(first.query_ids, 0.0), dict.fromkeys(other.query_ids, 0.0), f"{first.model} and {other.model}")
        if other.split != first.split:
            raise NegatronError(f"{first.model} was evaluated on {first.split}, {other.model} on {other.split}; evaluate both on one split")
        if first.fingerprint and other.fingerprint and first.fingerprint != other.fingerprint:
            raise NegatronError(
                f"{first.model} was evaluated on {first.data}, {other.model} on {other.data}: the query ids are the same, "
                "but the judgements are not; evaluate both on the same data"
            )


def same_queries(first: Values, second: Values, who: str) -> None:
    """Raises NegatronError, with examples, unless both hold the same queries: leaving some out unsaid would flatter a side."""
    if first.keys() != second.keys():
        only = [sorted(x.keys() - y.keys()) for x, y in ((first, second), (second, first))]
        shown = "; ".join(
            f"{len(ids):,} only on the {side} side, such as {', '.join(map(repr, ids[:3]))}"
            for side, ids in zip(("first", "second"), only, strict=True)
            if ids
        )
        raise NegatronError(f"{who} were not measured on the same queries: {shown}; evaluate both on the same split")


def mean_of_seeds(seeds: Sequence[Values]) -> dict[str, float]:
    """Query id -> mean over the seeds of one side, by query id. Raises NegatronError when the seeds differ in their queries."""
    if not seeds:
        raise NegatronError("there is nothing to compare: each side needs at least one evaluation")
    for other in seeds[1:]:
        same_queries(seeds[0], other, "two seeds of one side")
    return {query_id: math.fsum(values[query_id] for values in seeds) / len(seeds) for query_id in sorted(seeds[0])}


def pooled(
    sets: Mapping[str, tuple[Sequence[Values], Sequence[Values]]],
    measure: str,
    *,
    name_a: str = "A",
    name_b: str = "B",
    seed: int = 0,
) -> Comparison:
    """B against A over several data sets, each with the same weight whatever its number of queries.

    sets: name of the data set -> (values of each seed of A, values of each seed of B). The difference is the mean over sets of the set's
    mean difference; its test flips signs, and its bootstrap draws queries, within each set. Raises NegatronError when the two sides of a
    set differ in their queries, or a set has fewer than two.
    """
    means = {name: (mean_of_seeds(a), mean_of_seeds(b)) for name, (a, b) in sorted(sets.items())}
    if not means:
        raise NegatronError("there is nothing to compare: no data set was given")
    for name, (a, b) in means.items():
        same_queries(a, b, f"{name_a} and {name_b} on {name}")
        if len(a) < 2:
            raise NegatronError(f"{name} has {len(a)} judged query; a paired comparison needs at least two")
    differences = [np.array([b[query_id] - a[query_id] for query_id in a]) for a, b in means.values()]
    differences = [np.where(np.abs(one) < 1e-12, 0.0, one) for one in differences]  # rounding of a mean over seeds is not a win
    every = np.concatenate(differences)
    p_value, exact = randomisation_test(differences, seed=seed)
    low, high, kind = bootstrap_interval(differences, seed=seed)
    seeds_a, seeds_b = (max(len(sides[i]) for sides in sets.values()) for i in (0, 1))
    return Comparison(
        measure=measure,
        name_a=name_a,
        name_b=name_b,
        queries=len(every),
        mean_a=mean_over_sets([np.array(list(a.values())) for a, _ in means.values()]),
        mean_b=mean_over_sets([np.array(list(b.values())) for _, b in means.values()]),
        difference=mean_over_sets(differences),
        low=low,
        high=high,
        p_value=p_value,
        p_t=t_test(differences),
        smallest_visible=smallest_visible_difference(differences),
        wins=int((every > 0).sum()),
        losses=int((every < 0).sum()),
        ties=int((every == 0).sum()),
        seeds_a=seeds_a,
        seeds_b=seeds_b,
        exact=exact,
        data=tuple(means),
        interval_kind=kind,
    )


def mean_over_sets(sets: Sequence[Float64Array]) -> float:
    """Mean over sets of each set's mean, sets [S] of values [n_s]."""
    return math.fsum(math.fsum(one) / len(one) for one in sets) / len(sets)


def randomisation_test(differences: Sequence[Float64Array], *, seed: int = 0, permutations: int = PERMUTATIONS) -> tuple[float, bool]:
    """Two-sided p-value of the paired randomisation test, and whether every sign pattern was counted.

    differences: for each data set its paired differences [n_s]. Under the null hypothesis the two sides of a query could be exchanged, so
    each difference could have the other sign. p is the share of sign patterns whose |statistic| is at least the one observed: all 2^n of
    the n queries that differ when n <= 16, else (r + 1) / (permutations + 1) of seeded draws. Source: Fisher's test as Smucker, Allan and
    Carterette, CIKM 2007, use it for retrieval; the + 1 is that of Phipson and Smyth 2010.
    """
    weighted = np.concatenate([one / (len(one) * len(differences)) for one in differences])
    weighted = weighted[weighted != 0]  # a query on which the sides are equal stays equal under either sign
    if weighted.size == 0:
        return 1.0, True
    # Sums of the same numbers in another order differ by rounding; without the tolerance a tie would count as smaller.
    reach = abs(math.fsum(weighted)) - 1e-12 * float(np.abs(weighted).sum())
    exact = weighted.size <= EXACT_UP_TO
    count = 2**weighted.size if exact else permutations
    generator = np.random.default_rng(stream(seed, "randomisation test").getrandbits(64))
    block = max(1, BLOCK // weighted.size)
    total = float(weighted.sum())
    hits = 0
    for start in range(0, count, block):
        rows = min(block, count - start)
        flips: NDArray[Any]
        if exact:
            flips = (np.arange(start, start + rows)[:, None] >> np.arange(weighted.size)) & 1
        else:
            flips = np.unpackbits(generator.integers(0, 256, (rows, -(-weighted.size // 8)), dtype=np.uint8), axis=1, count=weighted.size)
        sums = total - 2 * (flips.astype(np.float64) @ weighted)
        hits += int((np.abs(sums) >= reach).sum())
    return (hits / count, True) if exact else ((hits + 1) / (count + 1), False)


def bootstrap_interval(
    values: Sequence[Float64Array], *, seed: int = 0, confidence: float = 0.95, resamples: int = RESAMPLES
) -> tuple[float, float, str]:
    """Bootstrap interval of the mean over sets of each set's mean, and its kind; queries are drawn again within each set.

    values: for each data set its values [n_s], n_s >= 2. One set: BCa (Efron 1987). Several: percentile. Both by scipy.stats.bootstrap.
    Values that are all the same give an interval without width.
    """
    if all(np.ptp(one) == 0 for one in values):
        return mean_over_sets(values), mean_over_sets(values), "percentile"
    from scipy.stats import bootstrap

    kind = "BCa" if len(values) == 1 else "percentile"
    found = bootstrap(
        tuple(values),
        lambda *sets, axis=-1: sum(np.mean(one, axis=axis) for one in sets) / len(sets),
        n_resamples=resamples,
        batch=max(1, BLOCK // max(len(one) for one in values)),
        vectorized=True,
        confidence_level=confidence,
        method=kind,
        random_state=np.random.default_rng(stream(seed, "bootstrap").getrandbits(64)),
    ).confidence_interval
    return float(found.low), float(found.high), kind


def mean_interval(values: Values, *, seed: int = 0, confidence: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval of the mean of one side alone. Two such intervals may overlap although the *paired* difference is visible."""
    if len(values) < 2:
        raise NegatronError(f"{len(values)} judged query: an interval needs at least two")
    low, high, _ = bootstrap_interval([np.array([values[query_id] for query_id in sorted(values)])], seed=seed, confidence=confidence)
    return low, high


def standard_error(differences: Sequence[Float64Array]) -> tuple[float, float]:
    """Of the mean over sets of the sets' mean differences, and its degrees of freedom (Welch and Satterthwaite; n - 1 for one set)."""
    parts = [float(np.var(one, ddof=1)) / len(one) / len(differences) ** 2 for one in differences]
    below = math.fsum(part**2 / (len(one) - 1) for part, one in zip(parts, differences, strict=True))
    freedom = math.fsum(parts) ** 2 / below if below > 0 else float(sum(len(one) - 1 for one in differences))
    return math.sqrt(math.fsum(parts)), freedom


def t_test(differences: Sequence[Float64Array]) -> float:
    """Two-sided p-value of the paired t-test; with several sets, of Welch's kind on the mean over sets."""
    from scipy.stats import t

    error, freedom = standard_error(differences)
    mean = mean_over_sets(differences)
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * t.sf(abs(mean) / error, freedom))


def smallest_visible_difference(differences: Sequence[Float64Array], *, alpha: float = ALPHA, power: float = POWER) -> float:
    """The true difference that a two-sided paired test at `alpha` finds with probability `power`.

    (t_{1 - alpha/2} + t_power) * standard error, with Student's quantiles.

    Source: Bloom 1995, "Minimum Detectable Effects", Evaluation Review 19(5). It depends on the spread of the differences and on the number
    of queries, not on the difference that was found.
    """
    from scipy.stats import t

    error, freedom = standard_error(differences)
    return float((t.ppf(1 - alpha / 2, freedom) + t.ppf(power, freedom)) * error)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for having been looked at together, in the order given. Source: Holm 1979, step-down.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    reached = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = reached
    return corrected


def correct(family: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons with `p_holm` over all of them."""
    return [replace(one, p_holm=p) for one, p in zip(family, holm([one.p_value for one in family]), strict=True)]


def read_side(path: Path) -> list[Evaluation]:
    """One side of a comparison: the evaluation in a folder, or those in its sub-folders (one for each seed), by name.

    Raises DataError when there is neither.
    """
    if (path / SCORES).is_file():
        return [read_evaluation(path)]
    folders = sorted(scores.parent for scores in path.glob(f"*/{SCORES}") if not scores.parent.name.startswith("."))
    if not folders:
        expected = "give a folder that `negatron evaluate` wrote, or one that holds several of them (seeds)"
        raise DataError(f"no {SCORES} in it or in the folders inside; {expected}" if path.is_dir() else f"no such folder; {expected}", path)
    return [read_evaluation(folder) for folder in folders]
