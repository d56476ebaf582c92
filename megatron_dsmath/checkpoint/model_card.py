"""README.md of an exported model: its shape, training data, scores and licence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_dsmath.checkpoint.manifest import LogitVerdict, Manifest
from megatron_dsmath.checkpoint.safetensors_files import read_json
from megatron_dsmath.errors import ConversionError


def model_card(title: str, manifest: Manifest, logits: LogitVerdict, scores: Mapping[str, float]) -> str:
    """The model card in Markdown, with the header that model hubs read. `scores`: a number per benchmark."""
    model, trained = manifest.model, manifest.kind == "training"
    base = manifest.state.get("source") or model.initial_weights  # only the name of the path is published
    base = Path(str(base)).name if base else "none: initial weights drawn from a seed"
    if manifest.average:
        base = f"the mean of {len(manifest.average)} checkpoints, listed below"
    shape = (
        f"{model.layers} layers, width {model.hidden_size}, feed-forward {model.ffn_hidden_size}, "
        f"{model.attention_heads} heads ({model.key_value_heads} key-value heads), "
        f"{model.vocabulary_size:,} tokens in the vocabulary"
    )
    facts = [
        ("base", base),
        ("parameters", f"{model.parameters:,}"),
        ("shape", shape),
        ("precision of training" if trained else "precision", manifest.precision),
        ("optimizer steps", f"{manifest.step:,}"),
        ("tokens seen", f"{manifest.consumed_tokens:,}"),
        ("logits", logits),
        ("software", ", ".join(f"{name} {number}" for name, number in manifest.software.items())),
    ]
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "license: other", "---", ""]
    lines += [f"# {title}", "", "A `LlamaForCausalLM` written by `dsmath export-hf`.", "", "| | |", "|---|---|"]
    counts = ("optimizer steps", "tokens seen")  # of an average, each checkpoint has its own
    lines += [f"| {name} | {value} |" for name, value in facts if not (manifest.average and name in counts)]
    lines += _average(manifest)
    lines += _data(manifest.state)
    lines += _table("Scores", "benchmark | score", {name: f"{score:g}" for name, score in scores.items()})
    lines += [
        "",
        "## Licence",
        "",
        "These weights have the licence of the weights they were trained from, and the terms of their data. DeepSeek's",
        "are under the DeepSeek Model License, which also applies to copies and derivatives: include it with them.",
    ]
    return "\n".join(lines) + "\n"


def read_scores(path: Path) -> dict[str, float]:
    """Read a number per benchmark from a JSON file. Raises ConversionError for any other content."""
    scores = read_json(path)
    for name, score in scores.items():
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise ConversionError(
                "a score is not a number",
                where=f"{path}: {name}",
                found=score,
                expected='a number per benchmark: {"gsm8k": 64.2, "math": 36.2}',
                fix="correct this score",
            )
    return scores


def _average(manifest: Manifest) -> list[str]:
    """The checkpoints whose weights were averaged, by the names of their directories, and their shares of the mean."""
    if not manifest.average:
        return []
    lines = ["", "## Average", "", "The weights are the weighted mean, computed in fp32, of these checkpoints:", ""]
    lines += ["| checkpoint | optimizer steps | tokens seen | share |", "|---|---|---|---|"]
    for part, share in zip(manifest.average, manifest.average_shares, strict=True):
        path = Path(part.path)
        in_run = path.parent.name == "checkpoints"
        name = f"{path.parent.parent.name}, {path.name}" if in_run else path.name
        counts = ["unknown" if count is None else f"{count:,}" for count in (part.step, part.consumed_tokens)]
        lines.append(f"| {name} | {counts[0]} | {counts[1]} | {share:.4f} |")
    return lines


def _data(state: Mapping[str, Any]) -> list[str]:
    """Tokens read per corpus, or target tokens per kind, language and source of conversations."""
    tokens, plan = state.get("tokens_by_corpus"), state.get("plan")
    if not isinstance(tokens, Mapping):
        return []
    of_conversations = isinstance(plan, Mapping) and "chat_template" in plan
    columns = "kind, language or source of conversations | target tokens" if of_conversations else "corpus | tokens"
    return _table("Data", columns, {name: f"{count:,}" for name, count in tokens.items()})


def _table(title: str, columns: str, values: Mapping[str, str]) -> list[str]:
    rows = [f"| {name} | {value} |" for name, value in values.items()]
    return ["", f"## {title}", "", f"| {columns} |", "|---|---|", *rows] if rows else []
