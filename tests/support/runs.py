"""Small runs for tests: a complete configuration whose every size is odd enough to show a mix-up."""

from __future__ import annotations

import copy
from typing import Any

from megatron_dsmath.config.sections import RunConfig

TREE: dict[str, Any] = {
    "output": "runs/test",
    "seed": 7,
    "precision": "fp32",
    "model": {
        "layers": 4,
        "hidden_size": 48,
        "ffn_hidden_size": 88,
        "attention_heads": 6,
        "key_value_heads": 2,
        "vocabulary_size": 96,
        "max_position_embeddings": 64,
        "norm_epsilon": 1e-6,
        "rope_theta": 10000.0,
        "initial_std": 0.1,
        "initial_weights": None,
        "kernels": "torch",
    },
    "data": {
        "tokenizer": "tokenizer",
        "sequence_length": 32,
        "attend_across_documents": True,
        "corpora": [
            {"name": "mathematics", "weight": 3.0, "paths": ["data/mathematics"]},
            {"name": "code", "weight": 1.0, "paths": ["data/code"]},
        ],
        "conversations": None,
        "held_out_share": 0.1,
    },
    "schedule": {
        "steps": 10,
        "sequences_per_step": 8,
        "peak_learning_rate": 1e-2,
        "warmup_steps": 2,
        "drops": [{"after": 0.8, "factor": 0.316}],
    },
    "optimizer": {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1, "gradient_clip": 1.0},
    "parallel": {
        "tensor": 1,
        "sequence": False,
        "pipeline": 1,
        "virtual_stages": 1,
        "stage_layers": None,
        "distributed_optimizer": True,
        "overlap_communication": False,
        "recompute": "none",
        "microbatch_sequences": 2,
    },
    "checkpoint": {
        "every_steps": 4,
        "every_minutes": 0.0,
        "keep": 2,
        "asynchronous": True,
        "max_failures": 0,
        "allowed_changes": [],
    },
    "validation": {"every_steps": 5, "sequences_per_corpus": 4},
    "tracking": {"console_every_steps": 1, "wandb": "disabled", "wandb_project": "test"},
    "guard": {
        "non_finite": "stop",
        "spike": "flag",
        "rewind_steps": 3,
        "verify_every_steps": 0,
        "setup_timeout_seconds": 300.0,
        "step_timeout_seconds": 60.0,
        "save_timeout_seconds": 300.0,
    },
}


def tree(**overrides: Any) -> dict[str, Any]:
    """The small run with dotted `overrides` written with two underscores: `parallel__tensor=2`."""
    values = copy.deepcopy(TREE)
    for key, value in overrides.items():
        node = values
        *parents, last = key.split("__")
        for parent in parents:
            node = node[parent]
        node[last] = value
    return values


def run_config(**overrides: Any) -> RunConfig:
    """The small run as the product reads it."""
    import json

    return RunConfig.model_validate_json(json.dumps(tree(**overrides)))
