"""A LLaMA decoder built from megatron-core's layers: the model chunks of this rank, its norm and its loss."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from megatron.core.utils import get_attr_wrapped_model

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.parallel.attention import CoreAttention

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build(run: RunConfig, device: torch.device) -> list[Decoder]:
    """Build this rank's model chunks, one per virtual stage; their weights are not initialized."""
    config = transformer_config(run, device)
    stages = run.parallel.virtual_stages
    return [
        Decoder(
            config=config,
            transformer_layer_spec=_layers(run, config, stage if stages > 1 else None),
            vocab_size=run.model.vocabulary_size,
            max_sequence_length=run.model.max_position_embeddings,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage),
            parallel_output=True,
            share_embeddings_and_output_weights=False,
            # `CoreAttention` rotates queries and keys itself.
            position_embedding_type="none" if run.model.kernels == "torch" else "rope",
            rotary_base=run.model.rope_theta,
            vp_stage=stage if stages > 1 else None,
        )
        for stage in range(stages)
    ]


def transformer_config(run: RunConfig, device: torch.device) -> TransformerConfig:
    """megatron-core's configuration for a run; omitted fields keep megatron-core's defaults."""
    model, parallel = run.model, run.parallel
    on_gpu = device.type == "cuda"
    interleaved = parallel.virtual_stages > 1
    return TransformerConfig(
        num_layers=model.layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.attention_heads,
        num_query_groups=model.key_value_heads,
        kv_channels=model.head_size,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_epsilon,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        # `model.decoder` loads the weights or draws them from the seed, so megatron-core does not initialize them.
        perform_initialization=False,
        use_cpu_initialization=not on_gpu,
        params_dtype=DTYPES[run.precision],
        pipeline_dtype=DTYPES[run.precision],
        bf16=run.precision == "bf16",
        tensor_model_parallel_size=parallel.tensor,
        sequence_parallel=parallel.sequence,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_stages if interleaved else None,
        pipeline_model_parallel_layout=_pipeline_layout(parallel.stage_layers),
        # gloo has no batched point-to-point communication; interleaving then needs the overlapped kind.
        batch_p2p_comm=on_gpu and not interleaved,
        overlap_p2p_comm=interleaved,
        gradient_accumulation_fusion=False,  # apex's kernel
        masked_softmax_fusion=False,
        bias_activation_fusion=on_gpu,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,  # TransformerEngine's kernel
        calculate_per_token_loss=True,  # gradients divide by the global batch's target tokens
        recompute_granularity=None if parallel.recompute == "none" else parallel.recompute,
        recompute_method="uniform" if parallel.recompute == "full" else None,
        recompute_num_layers=1 if parallel.recompute == "full" else None,
    )


class Decoder(GPTModel):
    """megatron-core's GPT model, with a loss without communication where a rank holds the whole vocabulary."""

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The nats of labels [batch, sequence], in that shape, given logits [sequence, batch, vocabulary share]."""
        if parallel_state.get_tensor_model_parallel_world_size() > 1:
            return super().compute_language_model_loss(labels, logits)
        nats: torch.Tensor = CrossEntropy.apply(logits.flatten(0, 1), labels.t().flatten())
        return nats.view(labels.size(1), labels.size(0)).t()


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm with a learned scale; megatron-core's own does not support sequence parallelism."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.shape, self.epsilon = (hidden_size,), eps
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
        # Each rank sees a part of the sequence, so megatron-core must sum this weight's gradient over the ranks.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scale each position of [sequence, batch, hidden] to a mean square of 1."""
        return F.rms_norm(hidden, self.shape, self.weight, self.epsilon)


class CrossEntropy(torch.autograd.Function):
    """-log softmax(logits)[label] in fp32; the backward overwrites the saved log-probabilities with the gradient.

    logits: [rows, vocabulary]; labels: [rows]; returns [rows]. The backward may run only once.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the nats of each row: [rows]."""
        log_probabilities = torch.log_softmax(logits, 1, dtype=torch.float32)
        ctx.dtype = logits.dtype
        ctx.save_for_backward(log_probabilities, labels)
        return -log_probabilities.gather(1, labels[:, None])[:, 0]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient of the logits: softmax minus 1 at the label, times the gradient of each row."""
        log_probabilities, labels = ctx.saved_tensors
        probabilities = log_probabilities.detach().exp_()
        probabilities.scatter_add_(1, labels[:, None], probabilities.new_full((len(labels), 1), -1.0))
        return probabilities.mul_(gradient[:, None]).to(ctx.dtype), None


def mark_tensor_parallel(tensor: torch.Tensor, dimension: int) -> None:
    """Mark `tensor` as split along `dimension` over the tensor-parallel ranks, as megatron-core expects it."""
    set_tensor_model_parallel_attributes(tensor, True, dimension, 1)


def unwrap_decoder(chunk: torch.nn.Module) -> Decoder:
    """The decoder inside its data-parallel wrapper."""
    decoder = get_attr_wrapped_model(chunk, "decoder", return_model_obj=True)
    assert isinstance(decoder, Decoder)
    return decoder


def _layers(run: RunConfig, config: TransformerConfig, stage: int | None) -> ModuleSpec | TransformerBlockSubmodules:
    if run.model.kernels == "transformer_engine":
        return get_gpt_layer_with_transformer_engine_spec()
    attention = SelfAttentionSubmodules(
        linear_qkv=ColumnParallelLinear,
        core_attention=partial(CoreAttention, rope_theta=run.model.rope_theta),
        linear_proj=RowParallelLinear,
        q_layernorm=IdentityOp,
        k_layernorm=IdentityOp,
    )
    feed_forward = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    layer = TransformerLayerSubmodules(
        input_layernorm=RMSNorm,
        self_attention=ModuleSpec(SelfAttention, {"attn_mask_type": AttnMaskType.causal}, attention),
        self_attn_bda=get_bias_dropout_add,
        pre_mlp_layernorm=RMSNorm,
        mlp=ModuleSpec(module=MLP, submodules=feed_forward),
        mlp_bda=get_bias_dropout_add,
    )
    # The final norm is given because megatron-core's default does not support sequence parallelism.
    layers = [ModuleSpec(module=TransformerLayer, submodules=layer)] * get_num_layers_to_build(config, stage)
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=RMSNorm)


def _pipeline_layout(stage_layers: tuple[int, ...] | None) -> list[list[str]] | None:
    """Convert layers per stage, as [7, 8, 8, 7], to megatron-core's lists of layer names per stage."""
    if stage_layers is None:
        return None
    stages = [["decoder"] * layers for layers in stage_layers]
    stages[0].insert(0, "embedding")
    stages[-1].append("loss")
    return stages
