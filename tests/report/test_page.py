from __future__ import annotations

import base64
import json
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import pytest

from megatron_dsmath.errors import ConfigError, OutputError, UsageError
from megatron_dsmath.report.page import Section, write_report
from tests.report.conftest import RUN, VALIDATED, WriteRun, row, write

PICTURES = ["gradient_norm", "learning_rate", "loss", "loss_by_corpus", "mixture", "throughput"]
VOID = {"meta", "img", "br"}


class ParsedPage(HTMLParser):
    """A parsed page: its tags, the rows of its tables, its text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text, self.open = "", list[str]()
        self.feed(page.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"th", "td"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data

    def row(self, label: str) -> list[str]:
        return next(cells for name, *cells in self.rows if name == label)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that was started twice and stopped, with its report."""
    rows = [row(1), row(2), row(3), row(4, goodput=0.5, **VALIDATED)]
    folder = write(tmp_path_factory.mktemp("runs") / "run", rows)
    (folder / "logs").mkdir()
    (folder / "logs" / "starts.jsonl").write_text('{"time_unix": 100.0, "world_size": 4}\n{"world_size": 2}\n')
    status = {"state": "stopped", "message": "asked to", "time_unix": 285.0}
    status |= {"goodput": 0.975, "restarts": 1, "lost_steps": 12, "save_seconds": 65.0, "failed_saves": 0}
    (folder / "STATUS.json").write_text(json.dumps(status))
    saved = folder / "checkpoints" / "step_3"
    saved.mkdir(parents=True)
    (saved / "MANIFEST.json").write_text("{}".ljust(1500))
    assert write_report([folder]) == folder / "report.html"
    return folder


def test_the_summary_has_the_values_of_the_files(reported: Path) -> None:
    page = ParsedPage(reported / "report.html")
    expected = {
        "Model": "6,910,365,696 parameters: 30 layers of 4,096, 32 heads, vocabulary 102,400, bf16",
        "Layout": "2 processes, tensor 2, pipeline 1, sequence parallel",
        "Steps": "4 of 8",
        "Tokens": "2,560 of 5,120",  # 8 steps of 10 sequences of 64 tokens
        "Training loss": "2.5000 at step 4",
        "Validation loss": "2.6250 at step 4",
        "Throughput": "1,280 tokens/s (median)",
        "Time": "3 min 05 s since the first start, 2.0 s of it in steps",
        "State": "stopped; asked to",
        "Checkpoints": "1, the newest at step 3",
        "step 3": "1.5 kB, complete",
    }
    assert {label: page.row(label) for label in expected} == {label: [value] for label, value in expected.items()}


def test_goodput_is_read_from_the_status(reported: Path) -> None:
    page = ParsedPage(reported / "report.html")
    assert page.row("Time in useful steps") == ["97.50%"]  # STATUS.json, which is newer than the last row
    assert page.row("Restarts") == ["1"]
    assert page.row("Repeated steps") == ["12"]
    assert page.row("Time blocked by saves") == ["1 min 05 s"]
    assert page.row("Failed saves") == ["0"]


def test_goodput_of_an_unfinished_run_is_read_from_its_last_row(write_run: WriteRun) -> None:
    measured = {"goodput": 0.5, "restarts": 2, "lost_steps": 3, "save_seconds": 4.0, "failed_saves": 1}
    folder, older = write_run("new", [row(1), row(2, **measured)]), write_run("old")
    (folder / "STATUS.json").write_text(json.dumps({"state": "running", "restarts": 3}))
    page = ParsedPage(write_report([folder, older]))
    labels = ("Time in useful steps", "Restarts", "Repeated steps", "Time blocked by saves", "Failed saves")
    assert [page.row(label) for label in labels] == [[value, "–"] for value in ("50.00%", "3", "3", "4.0 s", "1")]


def test_the_mixture_is_shown_against_its_weights(reported: Path) -> None:
    page = ParsedPage(reported / "report.html")
    # 512 of 640 tokens a step are mathematics; the weights are 3 to 1.
    assert page.row("math") == ["75.00%", "80.00%", "2,048", "2.2500", "2.2500"]
    assert page.row("code") == ["25.00%", "20.00%", "512", "3.2500", "3.7500"]


def test_the_page_has_the_text_of_run_yaml(reported: Path) -> None:
    assert (reported / "run.yaml").read_text() in ParsedPage(reported / "report.html").text


def test_the_page_contains_the_pictures_and_loads_nothing(reported: Path) -> None:
    page = ParsedPage(reported / "report.html")
    sources = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    embedded = sorted(base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources)
    files = sorted((reported / "report").iterdir())
    assert [file.name for file in files] == [f"{name}.png" for name in PICTURES]
    assert embedded == sorted(file.read_bytes() for file in files)
    assert {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags} == set()
    assert not re.search(r"url\(|@import|https?:", (reported / "report.html").read_text(encoding="utf-8"))


def test_pictures_are_1200_pixels_wide(reported: Path) -> None:
    for file in (reported / "report").iterdir():
        width, _ = struct.unpack(">II", file.read_bytes()[16:24])  # PNG, chunk IHDR
        assert width == 1200


def test_names_with_markup_are_shown_as_text(write_run: WriteRun) -> None:
    name = "<script>alert('$x_{$')</script>\n&\"\ud800"
    run = {**RUN, "data": {**RUN["data"], "corpora": [{"name": name[:-1], "weight": 1.0}]}}
    folder = write_run("a<b>&c", [row(1, loss_by_corpus={name: 1.0}, tokens_by_corpus={name: 5})], run=run)
    (folder / "STATUS.json").write_text(json.dumps({"state": name}))
    page = ParsedPage(write_report([folder], [Section(name, [(name, name)], name)]))
    assert {tag for tag, _ in page.tags} <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "table", "thead", "tbody", "tr"),
        *("th", "td", "figure", "img", "figcaption", "details", "summary", "pre"),
    }
    shown = name.replace("\ud800", "?")
    assert page.row("State") == [shown]
    assert page.row(shown) == [shown]
    assert "Training report: a<b>&c" in page.text


def test_sections_of_the_caller_are_in_their_order(write_run: WriteRun) -> None:
    sections = [Section("The kill", [("killed at step", "6")], "Once.\nTwice."), Section("The export")]
    page = ParsedPage(write_report([write_run()], sections))
    assert page.row("killed at step") == ["6"]
    assert page.text.index("The kill") < page.text.index("Once.\nTwice.") < page.text.index("The export")


def test_several_runs_share_a_page_in_the_first_folder(write_run: WriteRun) -> None:
    first, second = write_run("slow"), write_run("fast", [row(1, loss=1.25), row(2, loss=0.75)])
    path = write_report([first, second])
    page = ParsedPage(path)
    assert path == first / "report.html"
    assert not (second / "report.html").exists()
    assert page.rows[0] == ["", "slow", "fast"]
    assert page.row("Training loss") == ["2.5000 at step 4", "0.7500 at step 2"]
    assert page.row("Validation loss") == ["2.6250 at step 4", "–"]


def test_runs_of_the_same_name_are_shown_by_their_paths(write_run: WriteRun, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, second = write_run("run"), write_run("other/run")
    page = ParsedPage(write_report([first, second]))
    assert page.rows[0] == ["", str(first), str(second)]


def test_metrics_without_measurements_have_no_picture(write_run: WriteRun) -> None:
    folder = write_run(rows=[{"step": 1, "loss": 2.0}])
    write_report([folder])
    assert [file.name for file in (folder / "report").iterdir()] == ["loss.png"]


@pytest.mark.parametrize(
    "rows",
    [
        [row(1)],
        [row(1, grad_norm=0.0), row(2, grad_norm=0.0)],
        [row(1, loss=float("nan"))],
        [row(1, learning_rate=0.0, step_seconds=0.0, tokens_per_second=0.0)],
        [row(1, tokens_by_corpus={"math": 0, "code": 0})],
        [row(step, loss_by_corpus={f"corpus_{i}": 1.0 for i in range(9)}) for step in (1, 2)],
    ],
    ids=["one step", "no gradient", "no finite loss", "zeros", "no tokens", "nine corpora"],
)
def test_runs_with_unusual_values_are_drawn(write_run: WriteRun, rows: list[dict[str, object]]) -> None:
    page = ParsedPage(write_report([write_run("a", rows), write_run("b")]))
    assert page.rows[0] == ["", "a", "b"]


def test_an_unfinished_last_line_is_reported(write_run: WriteRun) -> None:
    page = ParsedPage(write_report([write_run(tail='{"step"')]))
    assert "the last line of metrics.jsonl is unfinished and left out" in page.row("State")[0]


def test_nothing_is_written_where_one_folder_is_not_a_run(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run()
    with pytest.raises(ConfigError):
        write_report([folder, tmp_path / "nowhere"])
    assert sorted(file.name for file in folder.iterdir()) == ["metrics.jsonl", "run.yaml"]


def test_a_folder_that_cannot_be_written_is_refused(write_run: WriteRun) -> None:
    folder = write_run()
    (folder / "report").write_text("a file where the pictures go")
    with pytest.raises(OutputError):
        write_report([folder])
    assert not (folder / "report.html").exists()


def test_no_run_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        write_report([])
