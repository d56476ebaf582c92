"""results.json, and the same in the shape of lm-evaluation-harness, which dashboards read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

from megatron_dsmath.files.atomic_files import replace_text

RESULTS = "results.json"
HARNESS = "lm_eval_results.json"


def write_results(out: Path, results: Mapping[str, Any]) -> None:
    """Write both files. No time is in them: a killed evaluation, gone on with, gives the same bytes."""
    replace_text(out / HARNESS, _text(as_the_harness(results)), durable=True)
    replace_text(out / RESULTS, _text(results), durable=True)


def as_the_harness(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results as lm-evaluation-harness 0.4 writes its own: a metric is `name,filter`, with a standard error."""
    tasks, shots = results["tasks"], _shots(results)
    return {
        "results": {
            task: {
                "alias": task,
                **_metric("strict", figures.get("accuracy"), figures["problems"]),
                **_metric("deepseekmath", figures.get("accuracy_as_the_paper"), figures["problems"]),
            }
            for task, figures in tasks.items()
        },
        "group_subtasks": {task: [] for task in tasks},
        "configs": {
            task: {
                "task": task,
                "output_type": "generate_until",
                "num_fewshot": shots[task],
                "metadata": {"protocol": results["protocol"], "protocol_sha256": results["protocol_sha256"]},
            }
            for task in tasks
        },
        "versions": dict.fromkeys(tasks, results["protocol_sha256"][:12]),
        "n-shot": shots,
        "higher_is_better": {task: {"exact_match": True} for task in tasks},
        "n-samples": {
            task: {"original": benchmark["rows"], "effective": benchmark["problems"]}
            for task, benchmark in results["benchmarks"].items()
        },
        "config": {
            "model": results["backend"],
            "model_args": f"pretrained={results['model']}",
            "batch_size": results["batch_problems"],
            "limit": results["limit"],
            "random_seed": results["protocol_text"]["decoding"]["seed"],
        },
        "model_name": results["model"],
    }


def _metric(grader: str, accuracy: float | None, count: int) -> dict[str, float | str]:
    """Nothing where nobody judged."""
    if accuracy is None:
        return {}
    # The sample's standard deviation over the root of the count, as the harness has it.
    error = sqrt(accuracy * (1 - accuracy) / (count - 1)) if count > 1 else "N/A"
    return {f"exact_match,{grader}": accuracy, f"exact_match_stderr,{grader}": error}


def _shots(results: Mapping[str, Any]) -> dict[str, int]:
    """By task; those that are asked by their subject or language have the shots of the first of them."""
    prompts = results["protocol_text"]["prompts"]
    return {
        task: next(
            prompts[key]["shots"]
            for key in (task, *figures.get("by_subject", ()), *figures["by_language"])
            if key in prompts
        )
        for task, figures in results["tasks"].items()
    }


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"
