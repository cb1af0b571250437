"""The report: one file, nothing from outside, nothing executed that is not ours, every arm and number in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import plotly.graph_objects as go
import pytest

from negatron.evaluation.report import (
    Arm,
    BrowsedCandidate,
    BrowsedQuery,
    LearningCurve,
    ReportData,
    ScoreDistribution,
    figures,
    headline,
    outcome,
    render,
    script_safe,
    write_report,
)
from negatron.evaluation.significance import correct, pooled

HOSTILE = '</script><script>alert(1)</script><img src="http://evil.example/x.png" onerror=alert(2)>"\'&amp;{{ 7 * 7 }}\u2028'
VOID = {"meta", "input", "br", "img", "link", "hr"}


class Page(HTMLParser):
    """What stands in a page: elements with attributes, their text, and whether every element was closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.elements, self.texts = [], [], {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag] = self.texts.get(tag, "") + data

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def values(seed: int, shift: float) -> dict[str, float]:
    draw = np.random.default_rng(seed)
    return {f"q{i}": float(x) for i, x in enumerate(np.random.default_rng(9).random(150) + shift + 0.05 * draw.standard_normal(150))}


@pytest.fixture(scope="module")
def data() -> ReportData:
    before, none, dense, bad = values(1, 0.0), values(2, 0.05), values(3, 0.052), values(4, -0.08)
    compared = correct(
        [
            pooled({"set": ([before], [none])}, "ndcg@10", name_a="before training", name_b="no hard negatives"),
            pooled({"set": ([none], [dense])}, "ndcg@10", name_a="no hard negatives", name_b="dense"),
            pooled({"set": ([none], [bad])}, "ndcg@10", name_a="no hard negatives", name_b=HOSTILE),
        ]
    )
    arms = (
        Arm("BM25", "baseline", {"ndcg@10": 0.7, "mrr@10": 0.6}, seconds=75.0),
        Arm("before training", "baseline", {"ndcg@10": 0.5}, {"ndcg@10": (0.45, 0.55)}),
        Arm("no hard negatives", "model", {"ndcg@10": 0.55}, {"ndcg@10": (0.5, 0.6)}, compared[0], 0, 60.0),
        Arm("dense", "model", {"ndcg@10": 0.552}, {"ndcg@10": (0.5, 0.6)}, compared[1], 4500, 90.0, "mined in 24 s", "nothing to see"),
        Arm(HOSTILE, "model", {"ndcg@10": 0.42}, {}, compared[2], 4500, 90.0, HOSTILE, HOSTILE),
    )
    candidate = BrowsedCandidate(HOSTILE, ("dense", HOSTILE), HOSTILE, 0.71, False, (f"relative margin: {HOSTILE}",))
    kept = BrowsedCandidate("def f():\n    return 1", ("bm25",), "bm25 rank 3", None, True, ("relative margin: 0.410 is below 0.589",))
    queries = tuple(
        BrowsedQuery(f"query {n} {HOSTILE}", (("d1", HOSTILE),), (candidate, kept), (("before", None), ("after", 1))) for n in range(25)
    )
    return ReportData(
        title=f"Which negatives help? {HOSTILE}",
        subtitle=HOSTILE,
        arms=arms,
        facts={"machine": "2 cores", HOSTILE: HOSTILE},
        curves=(LearningCurve(HOSTILE, (1, 2, 3), (2.0, 1.5, 1.2), {0: 0.5, 3: 0.55}), LearningCurve("dense", (1, 2), (2.5, 2.0))),
        distributions=(ScoreDistribution(HOSTILE, (0.1, 0.2), (0.8,), (0.9, 0.7)), ScoreDistribution("bm25", (), (), ())),
        browser=queries,
        notes=(HOSTILE,),
        command=f"negatron demo {HOSTILE}",
    )


@pytest.fixture(scope="module")
def text(data: ReportData) -> str:
    return render(data)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_the_page_is_well_formed_and_holds_every_arm_query_and_fact(page, data):
    assert page.open == []
    for arm in data.arms:
        assert arm.name.strip() in page.texts["table"]
    assert len([one for one in page.of("details") if one.get("class") == "query card"]) == 25
    assert "mined in 24 s" in page.texts["table"]
    assert "nothing to see" in page.texts["table"]
    assert "2 cores" in page.texts["dl"]
    assert "negatron demo" in page.texts["pre"]
    assert "rank 1" in page.texts["summary"]
    assert "not found" in page.texts["summary"]
    for sentence in headline(data):
        assert sentence in page.texts["section"]


def test_nothing_is_fetched_from_anywhere(page, text):
    """No element refers to anything outside, the style sheet neither, and the page forbids it to itself."""
    for tag, attributes in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}, tag
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    style = page.texts["style"]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(one["content"] for one in page.of("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy.split("script-src")[1].split(";")[0]


def test_only_our_scripts_run(page, text):
    """Three script elements: the plots as data, Plotly, ours; the two that run are those whose SHA-256 the policy names."""
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", text, flags=re.DOTALL)
    assert [attributes for attributes, _ in scripts] == [' type="application/json" id="figures"', "", ""]
    policy = next(one["content"] for one in page.of("meta") if one.get("http-equiv") == "Content-Security-Policy")
    named = [f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for _, script in scripts[1:]]
    assert f"script-src {' '.join(named)};" in policy


def test_hostile_texts_are_shown_and_never_obeyed(page, text):
    assert "alert(1)" in page.texts["td"], "the hostile text is not in the page at all"
    assert "<script>alert" not in text
    assert "<img" not in text.split('id="figures"')[0]
    assert "{{ 7 * 7 }}" in page.texts["td"]
    assert page.texts["title"] == "Which negatives help? " + HOSTILE
    stored = json.loads(re.search(r'id="figures">(.*?)</script>', text, flags=re.DOTALL)[1])
    labels = stored["values"]["layout"]["yaxis"]["ticktext"]
    assert "&lt;/script&gt;" in labels[4].replace("<br>", "")
    assert not re.search(r"<(?!br>)", "".join(labels)), "Plotly reads some HTML in labels"


def test_data_for_the_script_cannot_end_its_element():
    assert json.loads(script_safe([HOSTILE])) == [HOSTILE]
    assert not set("<>&\u2028") & set(script_safe([HOSTILE]))


def test_figures_are_valid_plots_and_hold_the_numbers(data):
    found = figures(data)
    assert list(found) == ["values", "differences", "losses", "dev", "scores-0", "scores-1"]
    for figure in found.values():
        go.Figure(json.loads(re.sub(r"var\(--[a-z0-9-]+\)", "#123456", json.dumps(figure))))  # raises for anything Plotly does not know
    shown = {x for trace in found["values"]["data"] for x in trace["x"]}
    assert shown == {arm.values["ndcg@10"] for arm in data.arms}
    differences = {
        name: [t["x"] for t in found["differences"]["data"] if t["name"] == name] for name in ("better", "worse", "no visible difference")
    }
    assert differences == {
        "better": [[data.arms[2].comparison.difference]],
        "worse": [[data.arms[4].comparison.difference]],
        "no visible difference": [[data.arms[3].comparison.difference]],
    }
    bars = {trace["name"]: sum(y or 0 for y in trace["y"]) for trace in found["scores-0"]["data"]}
    assert bars == pytest.approx({"positives": 1.0, "kept": 2 / 3, "rejected": 1 / 3})


def test_every_colour_of_a_plot_is_one_of_the_style_sheet(data, page):
    named = set(re.findall(r"var\((--[a-z0-9-]+)\)", json.dumps(figures(data))))
    assert len(named) > 8
    style = page.texts["style"]
    light, dark = style.split("prefers-color-scheme: dark")
    for name in named:
        assert f"{name}:" in light, name
        assert f"{name}:" in dark, name


def test_the_headline_says_what_helped_and_what_could_not_be_seen(data):
    assert [outcome(arm.comparison) for arm in data.arms[2:]] == ["better", "none", "worse"]
    sentences = headline(data)
    assert sentences[0].startswith("Against before training, on ndcg@10: no hard negatives (+0.0")
    assert sentences[0].endswith("better.")
    assert "no visible difference for dense" in sentences[1]
    assert " worse" in sentences[1]
    assert sentences[2] == "The highest ndcg@10 of all is 0.700: BM25, a baseline."
    assert "With 150 queries, a true difference below about 0.0" in sentences[3]


def test_the_script_of_the_page_finds_the_elements_it_works_on(page):
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {"find", "source", "verdict", "more", "count", "figures", "queries"} <= ids
    places = {one["data-figure"] for one in page.of("div") if one.get("class") == "plot"}
    assert places == {"values", "differences", "losses", "dev", "scores-0", "scores-1"}
    options = {one["value"] for one in page.of("option")}
    assert options == {"", "0", "1", "2", "kept", "rejected"}
    rows = [one for one in page.of("li") if one.get("class", "").startswith("candidate")]
    assert {(one["data-kept"], one["data-sources"].strip()) for one in rows} == {("rejected", "2 0"), ("kept", "1")}


def test_tables_have_headers_with_a_scope_and_plots_have_words(page):
    assert all(one.get("scope") in {"col", "row"} for one in page.of("th"))
    assert len(page.of("table")) == 2
    assert all(one.get("aria-label") for one in page.of("div") if one.get("class") == "plot")


def test_a_report_comes_back_from_its_json(data):
    assert ReportData.from_json(data.to_json()) == data
    with pytest.raises(ValueError, match="arms"):
        ReportData.from_json('{"title": "t", "subtitle": "s"}')


def test_a_report_of_little_is_a_report(tmp_path):
    little = ReportData("Little", "nothing compared", (Arm("BM25", "baseline", {"ndcg@10": 0.5}),))
    write_report(little, tmp_path / "report.html")
    assert Page((tmp_path / "report.html").read_text(encoding="utf-8")).open == []
    write_report(replace(little, arms=(), title="lone surrogate \ud800"), tmp_path / "empty.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.html", "report.html"]
