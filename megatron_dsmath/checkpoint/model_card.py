"""README.md of an exported model: what it is, what it was trained on, whose licence binds it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_dsmath.checkpoint.manifest import Manifest


def model_card(title: str, manifest: Manifest) -> str:
    """The card in Markdown, with the header that model hubs read."""
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
        ("software", ", ".join(f"{name} {number}" for name, number in manifest.software.items())),
    ]
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "license: other", "---", ""]
    lines += [f"# {title}", "", "A `LlamaForCausalLM` written by `dsmath export-hf`.", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts]
    lines += _data(manifest.state.get("tokens_by_corpus"))
    lines += [
        "",
        "## Licence",
        "",
        "These weights carry the licence of those they were trained from, and the terms of their data. DeepSeek's are",
        "under the DeepSeek Model License, which binds copies and derivatives too: pass it on with them.",
    ]
    return "\n".join(lines) + "\n"


def _data(tokens_by_corpus: object) -> list[str]:
    if not isinstance(tokens_by_corpus, Mapping) or not tokens_by_corpus:
        return []
    rows: Mapping[str, Any] = tokens_by_corpus
    return ["", "## Data", "", "| corpus | tokens |", "|---|---|", *(f"| {name} | {rows[name]:,} |" for name in rows)]
