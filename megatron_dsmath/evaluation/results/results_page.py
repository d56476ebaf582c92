"""HTML pages: report.html with the scores, and one page per task with every problem. All text is escaped here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from megatron_dsmath.evaluation.results.scores import comparison_table
from megatron_dsmath.evaluation.rows import Row
from megatron_dsmath.files.atomic_files import replace_text

_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#ddd, #444); --soft: light-dark(#666, #aaa); }
body { font: 16px/1.5 system-ui, "Noto Sans CJK SC", "PingFang SC", sans-serif; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
p, summary span { color: var(--soft); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9375rem; }
th, td { text-align: left; padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid var(--line); }
div { overflow-x: auto; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: .8125rem/1.45 ui-monospace, Consolas, monospace; }
details { border-bottom: 1px solid var(--line); padding: .35rem 0; }
summary { cursor: pointer; } h3 { font-size: .875rem; margin: 1rem 0 .2rem; }
.right { color: light-dark(#00714b, #4fd1a5); } .wrong { color: light-dark(#b3261e, #ff8a80); }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_COUNTS = (
    "problems", "no_answer", "cut_off", "tool_calls", "programs", "program_errors", "program_timeouts",
    "grader_timeouts", "grader_errors", "graders_disagree", "no_verdict", "new_tokens",
)  # fmt: skip
_VERDICT_FIELDS = (
    "correct", "extracted", "correct_as_the_paper", "extracted_as_the_paper", "note", "checker_message", "end",
)  # fmt: skip


def write_pages(out: Path, results: Mapping[str, Any], rows: Mapping[str, Sequence[Row]]) -> None:
    """Write report.html and the page of each task into `out`."""
    for task, task_rows in rows.items():
        title = f"{task}: {len(task_rows):,} answers, {results['protocol']}"
        replace_text(out / _page_of(task), _document(title, [_problem(row) for row in task_rows]), durable=True)
    page = _document(f"{results['model']}, {results['protocol']}", _report(results))
    replace_text(out / "report.html", page, durable=True)


def _report(results: Mapping[str, Any]) -> list[str]:
    tasks, limit = results["tasks"], results["limit"]
    links = ", ".join(f'<a href="{escape(_page_of(task))}">{escape(task)}</a>' for task in tasks)
    limited = "" if limit is None else f" Only the first {limit:,} problems of each task were asked."
    parts = [
        f"<p>{escape(f'Percent correct, with 95% intervals.{limited}')} Every problem and answer: {links}.</p>",
        _table(comparison_table(results)),
        f"<p>{escape(_describe_shots(results['shots']))}</p>",
        "<h2>Counts</h2>",
        _table(
            [{"": name.replace("_", " "), **{task: f"{tasks[task][name]:,}" for task in tasks}} for name in _COUNTS]
        ),
    ]
    for task, scores in tasks.items():
        if "pass_at" in scores:
            shares = {f"pass@{k}": share for k, share in scores["pass_at"].items()}
            shares[f"majority of {results['samples']}"] = scores["majority"]
            rows = [{task: name, "percent": f"{100 * share:.1f}"} for name, share in shares.items()]
            parts += [f"<h2>{escape(task)}, {results['samples']} samples</h2>", _table(rows)]
        for part in ("level", "subject", "language"):
            if "accuracy" in scores and len(scores.get(f"by_{part}", {})) > 1:
                parts += [f"<h2>{escape(task)} by {part}</h2>", _part_table(scores[f"by_{part}"], part)]
    settings = {key: value for key, value in results.items() if key != "tasks"}
    return [*parts, "<h2>Settings of the evaluation</h2>", _text(json.dumps(settings, ensure_ascii=False, indent=1))]


def _describe_shots(shots: Mapping[str, str]) -> str:
    """For each author of shots: the tasks, and whether they are comparable to the paper's tables."""
    sentences = {
        "none": "Without shots: {}.",
        "paper": "With the paper's own shots: {}.",
        "project": "With shots written for this project, not comparable to the paper's tables: {}.",
        "custom": "With custom shots, not comparable to the paper's tables: {}.",
    }
    tasks = {author: ", ".join(task for task in shots if shots[task] == author) for author in sentences}
    return " ".join(sentences[author].format(names) for author, names in tasks.items() if names)


def _part_table(scores: Mapping[str, Mapping[str, Any]], part: str) -> str:
    rows = [
        {
            part: name,
            "problems": f"{one['problems']:,}",
            "strict": f"{100 * one['accuracy']:.1f}",
            "95% interval": " to ".join(f"{100 * end:.1f}" for end in one["interval_95"]),
            "as the paper": f"{100 * one['accuracy_as_the_paper']:.1f}",
        }
        for name, one in scores.items()
    ]
    return _table(rows)


def _problem(row: Row) -> str:
    kind = {True: "right", False: "wrong", None: "no verdict"}[row["correct"]]
    answer = row["extracted"] if row["extracted"] is not None else "no answer"
    differs = "" if row["correct"] == row["correct_as_the_paper"] else ", the graders disagree"
    title = f"{row['row']}.{row['sample']} {row['question']:.100}"
    verdict = f"{kind}{differs}: {answer:.60}"
    parts = [
        _titled("Prompt", row["prompt"]),
        _titled("Output", row["output"]),
        *(
            _titled(f"Program: {one['verdict']}", one["program"], "--- printed", one["stdout"], one["error"])
            for one in row["programs"]
        ),
        _titled("Reference", row["reference"]),
        _titled("Verdict", *(f"{name}: {row[name]}" for name in _VERDICT_FIELDS if name in row)),
    ]
    summary = f'<summary><b class="{kind}">{escape(verdict)}</b> <span>{escape(title)}</span></summary>'
    return f"<details>{summary}{''.join(parts)}</details>"


def _document(title: str, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{body}\n"
        f"</body></html>\n"
    )


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row.values())}</tr>" for row in rows)
    return f"<div><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"


def _titled(title: str, *lines: str) -> str:
    """A heading and preformatted text; empty lines are left out."""
    return f"<h3>{escape(title)}</h3>{_text(chr(10).join(filter(None, lines)))}"


def _text(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def _page_of(task: str) -> str:
    return f"problems-{task}.html"
