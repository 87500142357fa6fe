"""The page as a file: everything in it, nothing of users unescaped, nothing from the network."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hand_timelines import ping_pong, pipeline, pool, with_title

from plancc.show.files import WriteError
from plancc.show.report import Report, report_text, write_report
from plancc.show.results import result_cell
from plancc.simulator.forms import COMPUTE, Actor, Span, Timeline

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\u2028</script>'
LAYOUT: dict[str, Any] = {
    "plan": "p", "ranks": 8, "notes": ["a note"],
    "meshes": [{"name": "m", "axes": {"dp": 2, "pp": 2, "tp": 2}, "ranks": list(range(8))}],
    "variants": [{"index": 0, "guard": "always", "phase": None}],
    "schedule": {
        "name": "1F1B", "stages": 2, "virtual": 1, "microbatches": 4, "time": 15, "bubbles": 0.2,
        "peak_activations": [2, 1], "rows": [["F0", "B0"], ["F0", "B0"]],
    },
    "phases": [
        {
            "phase": phase, "variant": 0, "input": {"batch": 4, "seq_len": 128},
            "lives": [
                {"on": "m[pp=0]", "split": "heads over tp", "modules": [f"layers.*.a{n}" for n in range(9)]},
                {"on": "m[pp=1]", "split": "whole", "modules": ["lm_head"]},
            ],
            "traffic": [
                {"where": "layers.*.mlp", "kind": "all_reduce", "axes": "tp", "count": 4, "bytes": 16_384}
            ],
            "memory": [
                {"class": "m[pp=0]", "ranks": 4, "weights": 10**9, "cache": 0, "activations": 5, "total": 6}
            ],
        }
        for phase in ("prefill", "decode")
    ],
}  # fmt: skip
VERIFIED: dict[str, Any] = {
    "ok": False, "ranks": 8, "classes": 2, "reference_dtype": "float64", "shrunk": {"hidden": 8},
    "variants": [
        {
            "guard": "always", "phase": "prefill", "variant": 0, "ok": False, "max_abs_error": 1.5,
            "max_rel_error": 0.25, "collectives": {"all_reduce": 4}, "bytes": {"all_reduce": 2048},
            "message": "it is off", "max_grad_error": None,
        }
    ],
    "first_divergence": {"name": "linear_3", "rank": 2},
}  # fmt: skip


class Page(HTMLParser):
    """Elements by tag, the text of the page outside scripts, and whether tags are balanced."""

    VOID = ("meta", "link", "br", "img", "input", "rect")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside: list[str] = []
        self.wrong: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.inside.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID and (not self.inside or self.inside.pop() != tag):
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.inside[-1:] == ["script"]:
            self.scripts[-1] += data
        elif self.inside[-1:] != ["style"]:
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of all elements with a tag."""
        return [attrs for name, attrs in self.found if name == tag]


def everything(text: str = "plain") -> Report:
    """A report with all its parts, and `text` wherever a user's words can be."""
    span = Span(0, COMPUTE, text, "matmul", 0, 1e-3, text, text, 0, 10, 20)
    wait = Span(0, COMPUTE, f"wait for {text}", "wait", 1e-3, 3e-3, text, text)
    actors = (Actor(text, (0,), text), Actor("other", (1,), "m"))
    timeline = Timeline(text, True, actors, (span, wait), {0: ((0.0, 5),)}, {(0, 1): 7})
    layout = json.loads(json.dumps(LAYOUT).replace("layers.*.mlp", json.dumps(text)[1:-1]))
    layout["notes"] = layout["phases"][0]["lives"][0]["modules"] = [text]
    layout["meshes"][0]["name"] = text
    layout["phases"][0]["lives"][0]["on"] = f"{text}[pp=0]"
    found = json.loads(json.dumps(VERIFIED).replace("it is off", json.dumps(text)[1:-1]))
    rows = [{text: text, "step_s": 0.5, "nested": [1, 2]}]
    return Report(text, (timeline,), rows, layout, (text,), found, {text: 4})


def data_of(page: Page) -> Any:
    """What the script of a page reads."""
    return json.loads(page.scripts[0])


def test_all_parts_are_there() -> None:
    page = Page(report_text(everything()))
    assert [attrs["id"] for attrs in page.of("section")] == [
        "figures", "timeline", "waits", "time", "memory", "traffic", "results", "verification",
        "layout", "assumptions",
    ]  # fmt: skip
    links = [attrs["href"] for attrs in page.of("a")]
    assert links == ["#main", *(f"#{attrs['id']}" for attrs in page.of("section"))]
    assert not page.wrong and not page.inside


def test_empty_parts_have_no_section() -> None:
    page = Page(report_text(Report("only rows", rows=[{"a": 1}])))
    assert [attrs["id"] for attrs in page.of("section")] == ["results"]
    assert not Page(report_text(Report("nothing"))).of("section")


def test_words_of_users_stay_words() -> None:
    """No element, attribute or end of a script comes out of them; the text is there as it was."""
    word = "x" * len(EVIL)
    plain, evil = Page(report_text(everything(word))), Page(report_text(everything(EVIL)))
    assert [name for name, _ in evil.found] == [name for name, _ in plain.found]
    assert [sorted(attrs) for _, attrs in evil.found] == [sorted(attrs) for _, attrs in plain.found]
    assert len(evil.scripts) == 2 and evil.scripts[1] == plain.scripts[1]
    assert evil.text.replace(EVIL, word) == plain.text and EVIL in evil.text
    data = data_of(evil)
    assert data["groups"][0]["title"] == EVIL and EVIL in data["texts"]
    assert not evil.wrong and not evil.inside


def test_data_cannot_end_their_script() -> None:
    text = report_text(everything(EVIL))
    data = text.partition('id="data">')[2].partition("</script>")[0]
    assert "<" not in data and ">" not in data and "\u2028" not in data
    assert json.loads(data)["texts"]


def test_nothing_comes_from_elsewhere() -> None:
    """No address of a network anywhere, and a policy that lets only this script run."""
    text = report_text(Report("t", [pipeline(), pool(), ping_pong()], layout=LAYOUT))
    assert not re.search(
        r"https?:|//[a-z]+\.|\burl\((?!#)|@import|\bfetch\(|XMLHttp|WebSocket", text
    )
    page = Page(text)
    assert not [
        attrs for tag, attrs in page.found if "src" in attrs or tag in ("link", "iframe", "object")
    ]
    assert all((attrs["href"] or "").startswith("#") for attrs in page.of("a"))
    policy = page.of("meta")[1]["content"] or ""
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for body in (page.scripts[1], text.partition("<style>")[2].partition("</style>")[0]):
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert not re.search(
        r"\.innerHTML|insertAdjacentHTML|document\.write|\beval\(", page.scripts[1]
    )


def test_no_style_or_handler_in_elements() -> None:
    """The policy would drop them."""
    page = Page(report_text(everything()))
    assert not [
        attrs for _, attrs in page.found if any(k == "style" or k.startswith("on") for k in attrs)
    ]


def test_data_are_those_of_the_timelines() -> None:
    """Times in nanoseconds, spans by actor, stream and begin."""
    timeline = pipeline()
    data = data_of(Page(report_text(Report("t", [pipeline(predicted=False), timeline]))))
    assert [len(group["timelines"]) for group in data["groups"]] == [2]
    packed = data["groups"][0]["timelines"][0]
    assert packed["predicted"] is True
    spans = packed["spans"]
    rows = list(zip(spans["actor"], spans["stream"], spans["begin"], spans["end"], strict=True))
    assert rows == sorted(rows) and len(rows) == len(timeline.spans)
    assert max(spans["end"]) == round(timeline.seconds * 1e9) and sum(spans["flops"]) == sum(
        span.flops for span in timeline.spans
    )
    names = {data["texts"][number] for number in spans["path"]}
    assert names == {span.path for span in timeline.spans}
    for a, b in pairwise(rows):
        assert a[:2] != b[:2] or a[3] <= b[2]


def test_predicted_stands_beside_measured() -> None:
    """161 against 142 ms: 13.4 % longer, and a row for each kind."""
    text = Page(report_text(Report("t", [pipeline(), pipeline(predicted=False, seed=1)]))).text
    assert "13.4 % longer than predicted" in text and "measured / predicted" in text
    half = dataclasses.replace(pipeline(), predicted=False, spans=pipeline().spans[:200])
    other = Page(report_text(Report("t", [half, pipeline()]))).text
    assert "shorter than predicted" in other
    twice = dataclasses.replace(
        pipeline(), predicted=False,
        spans=tuple(dataclasses.replace(s, begin=2 * s.begin, end=2 * s.end) for s in pipeline().spans),
    )  # fmt: skip
    far = Page(report_text(Report("t", [pipeline(), twice]))).text
    assert "2 times as long as predicted" in far and "attention20.2 ms40.3 ms2.00 x" in far
    assert "computing102 ms204 ms2.00 x" in far
    one = Page(report_text(Report("t", [pipeline()]))).text
    assert "measured / predicted" not in one
    apart = [pipeline(), with_title(pipeline(predicted=False), "another")]
    assert "measured / predicted" not in Page(report_text(Report("t", apart))).text


def test_layout_marks_who_holds_what() -> None:
    """pp 0 is marked A, pp 1 is B; ranks stand where the mesh has them."""
    text = report_text(Report("t", layout=LAYOUT))
    cells = re.findall(r'<td class="s(\d)" title="([^"]+)">(\d)<sub>(\w)</sub></td>', text)
    assert [(rank, mark) for _, _, rank, mark in cells] == [
        (str(rank), "AB"[rank // 2 % 2]) for rank in range(8)
    ]
    assert {(mark, name) for _, name, _, mark in cells} == {("A", "m[pp=0]"), ("B", "m[pp=1]")}
    words = Page(text).text
    assert "1F1B: 2 stages, 4 micro-batches, bubbles 20.0 %" in words and "and 3 more" in words
    assert "As prefill, variant 0." in words


def test_a_large_mesh_is_cut() -> None:
    mesh = {"name": "m", "axes": {"dp": 4096, "tp": 2}, "ranks": list(range(8192))}
    text = report_text(Report("t", layout={**LAYOUT, "meshes": [mesh], "phases": []}))
    assert "3584 more rows" in text and text.count("<td>") < 1100


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("step_s", 0.0125, "12.5 ms"), ("seconds", 2, "2.00 s"), ("peak_bytes", 3_200_000, "3.20 MB"),
        ("tokens_per_s", 12345.678, "12,346"), ("model_flops", 2.5e12, "2.50 T"), ("ranks", 4096, "4,096"),
        ("mfu", 0.43219, "0.4322"), ("fits", True, "yes"), ("fits", False, "no"), ("note", None, "–"),
        ("plan", "a.plan", "a.plan"), ("axes", {"tp": 2}, '{"tp": 2}'),
    ],
)  # fmt: skip
def test_values_of_rows(key: str, value: object, text: str) -> None:
    assert result_cell(key, value).text == text


def test_rows_with_other_keys_share_a_table() -> None:
    text = Page(
        report_text(Report("t", rows=[{"plan": "a", "tp": 1}, {"plan": "b", "pp": 2}]))
    ).text
    assert text.index("plan") < text.index("tp") < text.index("pp") and "2 results" in text


def test_failed_verification_says_so() -> None:
    text = Page(report_text(Report("t", verification=VERIFIED))).text
    assert "Results differ." in text and "WRONG" in text and "it is off" in text
    assert "linear_3" in text and "hidden 8" in text and "2.05 kB" in text
    good = {**VERIFIED, "ok": True, "first_divergence": None}
    assert "those of one device." in Page(report_text(Report("t", verification=good))).text


def test_the_same_report_is_the_same_file(tmp_path: Path) -> None:
    write_report(tmp_path / "new" / "a.html", everything())
    write_report(tmp_path / "b.html", everything())
    assert (tmp_path / "new" / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    with pytest.raises(WriteError, match="cannot write"):
        write_report(tmp_path, everything())
    assert len(list(tmp_path.iterdir())) == 2
