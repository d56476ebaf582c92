"""What every rank of a test needs, imported once by the server the ranks are forked from."""

import megatron.core.dist_checkpointing
import megatron.core.models.gpt
import megatron.core.optimizer
import megatron.core.pipeline_parallel  # noqa: F401

import megatron_dsmath.training.train  # noqa: F401
