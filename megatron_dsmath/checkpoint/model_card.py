"""README.md of an exported model: what it is, what it was trained on, whose licence binds it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_dsmath.checkpoint.manifest import LogitVerdict, Manifest
from megatron_dsmath.checkpoint.safetensors_files import read_json
from megatron_dsmath.errors import ConversionError


def model_card(title: str, manifest: Manifest, logits: LogitVerdict, scores: Mapping[str, float]) -> str:
    """The card in Markdown, with the header that model hubs read. `scores`: by benchmark, as they were handed over."""
    model, trained = manifest.model, manifest.kind == "training"
    base = manifest.state.get("source") or model.initial_weights  # a path, whose folders are nobody's business
    base = Path(str(base)).name if base else "none: first weights drawn from a seed"
    facts = [
        ("base", base),
        ("parameters", f"{model.parameters:,}"),
        (
            "shape",
            f"{model.layers} layers, width {model.hidden_size}, feed-forward {model.ffn_hidden_size}, "
            f"{model.attention_heads} heads ({model.key_value_heads} of keys and values), "
            f"{model.vocabulary_size:,} words",
        ),
        ("precision of training" if trained else "precision", manifest.precision),
        ("optimizer steps", f"{manifest.step:,}"),
        ("tokens seen", f"{manifest.consumed_tokens:,}"),
        ("logits", logits),
        ("software", ", ".join(f"{name} {number}" for name, number in manifest.software.items())),
    ]
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "license: other", "---", ""]
    lines += [f"# {title}", "", "A `LlamaForCausalLM` written by `dsmath export-hf`.", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts]
    lines += _data(manifest.state)
    lines += _scores(scores)
    lines += [
        "",
        "## Licence",
        "",
        "These weights carry the licence of those they were trained from, and the terms of their data. DeepSeek's are",
        "under the DeepSeek Model License, which binds copies and derivatives too: pass it on with them.",
    ]
    return "\n".join(lines) + "\n"


def read_scores(path: Path) -> dict[str, float]:
    """A number for each benchmark, of a JSON file. Raises ConversionError when it is anything else."""
    scores = read_json(path)
    for name, score in scores.items():
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise ConversionError(
                "a score is no number",
                where=f"{path}: {name}",
                found=score,
                expected='a number for each benchmark: {"gsm8k": 64.2, "math": 36.2}',
                fix="write the scores so",
            )
    return scores


def _scores(scores: Mapping[str, float]) -> list[str]:
    if not scores:
        return []
    return [
        "",
        "## Scores",
        "",
        "| benchmark | score |",
        "|---|---|",
        *(f"| {name} | {scores[name]:g} |" for name in scores),
    ]


def _data(state: Mapping[str, Any]) -> list[str]:
    """What was read of each corpus, or learned of each kind, language and source of conversations."""
    tokens, plan = state.get("tokens_by_corpus"), state.get("plan")
    if not isinstance(tokens, Mapping) or not tokens:
        return []
    of_conversations = isinstance(plan, Mapping) and "chat_template" in plan
    told = "kind, language or source of conversations | tokens learned" if of_conversations else "corpus | tokens"
    rows = (f"| {name} | {count:,} |" for name, count in tokens.items())
    return ["", "## Data", "", f"| {told} |", "|---|---|", *rows]
