"""The sections of a run file, in the order of the file; `RunConfig` at the end is the whole file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from megatron_dsmath.config.curve import valid_curve, valid_length

Curve = Annotated[str, AfterValidator(valid_curve)]


class Section(BaseModel):
    """The base of all sections: frozen and strict, so that a number in quotes is an error and not converted."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelConfig(Section):
    """The shape of the decoder, its initial weights and its kernels."""

    layers: PositiveInt
    """Decoder layers (paper: 30)."""
    hidden_size: PositiveInt
    """Width of the residual stream (paper: 4096)."""
    ffn_hidden_size: PositiveInt
    """Width inside the SwiGLU feed-forward (paper: 11008)."""
    attention_heads: PositiveInt
    """Query heads (paper: 32)."""
    key_value_heads: PositiveInt
    """Key and value heads; fewer than `attention_heads` is grouped-query attention (paper: 32)."""
    vocabulary_size: PositiveInt
    """Rows of the embedding and of the output layer, never padded (paper: 102400)."""
    max_position_embeddings: PositiveInt
    """The longest sequence in the exported model's configuration; no parameter depends on it (paper: 4096)."""
    norm_epsilon: float = Field(gt=0)
    """Added to the mean square in RMSNorm (paper: 1e-6)."""
    rope_theta: float = Field(gt=0)
    """Base of the rotary frequencies (paper: 10000)."""
    initial_std: float = Field(gt=0)
    """Standard deviation of random initial weights (DeepSeek LLM: 0.006); not used with `initial_weights`."""
    initial_weights: str | None
    """A Hugging Face folder or a checkpoint to start from; null: random weights from the seed."""
    kernels: Literal["torch", "transformer_engine"]
    """The library for norms, linear layers and attention: torch runs everywhere, TransformerEngine on NVIDIA GPUs."""

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.attention_heads

    @property
    def parameters(self) -> int:
        """How many parameters the model has (paper's shape: 6,910,365,696)."""
        attention = self.hidden_size * self.head_size * 2 * (self.attention_heads + self.key_value_heads)
        feed_forward = 3 * self.hidden_size * self.ffn_hidden_size
        layer = attention + feed_forward + 2 * self.hidden_size
        return self.layers * layer + 2 * self.vocabulary_size * self.hidden_size + self.hidden_size

    def flops_per_token(self, sequence_length: int) -> int:
        """Floating-point operations per target token, forward and backward; causal attention counts half.

        Source: Megatron-LM's convention (6 N_matmul + 6 layers x hidden x sequence). The input embedding is a look-up
        and counts zero.
        """
        matrix_parameters = self.parameters - self.vocabulary_size * self.hidden_size
        matrix_parameters -= (2 * self.layers + 1) * self.hidden_size
        attention = 6 * self.layers * self.attention_heads * self.head_size * sequence_length
        return 6 * matrix_parameters + attention


class CorpusConfig(Section):
    """One corpus of the mixture."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """The name in metrics and reports."""
    weight: float = Field(ge=0)
    """The corpus' share of the tokens, relative to the other weights (paper: 56, 4, 10, 20, 10); 0 for a corpus that
    only `schedule.phases` reads."""
    paths: tuple[str, ...] = Field(min_length=1)
    """Prefixes of .bin/.idx pairs, or patterns of prefixes (`data/math_*`)."""
    max_epochs: float | None = Field(default=None, gt=0)
    """Refuse a run that reads the corpus more often than this; null allows any number."""


class ConversationsConfig(Section):
    """A dataset of conversations from `dsmath sft build`."""

    prefix: str
    """The prefix of the dataset."""
    packing: Literal["next-fit", "best-fit", "split"]
    """How examples are packed into sequences (paper: random concatenation, which is next-fit; record 23)."""


class DataConfig(Section):
    """The data: a mixture of corpora or conversations, and how they are divided into samples."""

    tokenizer: str
    """The tokenizer of the data: a folder, a `tokenizer.json` or a SentencePiece `.model`."""
    sequence_length: PositiveInt
    """Target tokens per sample; a sample holds one token more (paper: 4096)."""
    attend_across_documents: bool
    """Whether a token attends to earlier documents in its sample, as is common in pretraining (record 17)."""
    corpora: tuple[CorpusConfig, ...]
    """The corpora of the mixture; an empty list with conversations."""
    conversations: ConversationsConfig | None
    """The dataset to fine-tune on; null with a mixture."""
    held_out_share: float = Field(ge=0, lt=0.5)
    """Share of each corpus, or source of conversations, that is used for validation and never for training."""


class DropConfig(Section):
    """One drop of the multi-step learning rate."""

    after: float = Field(gt=0, lt=1)
    """The share of the run's steps after which the rate drops (paper: 0.8, 0.9)."""
    factor: float = Field(gt=0, le=1)
    """The rate after the drop, as a share of the peak (paper: 0.316, 0.1)."""


class PhaseConfig(Section):
    """A phase of the run (docs/schedule.md)."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """The name in reports."""
    length: Annotated[str, AfterValidator(valid_length)]
    """`2000 steps` or `400B tokens`, rounded up to whole steps."""
    learning_rate: Curve
    """The curve of the phase; it begins with the last rate of the phase before."""
    sequences_per_step: PositiveInt | None = None
    """The global batch size of the phase; null: `schedule.sequences_per_step`."""
    weights: dict[str, Annotated[float, Field(gt=0)]] | None = None
    """The weights of the corpora that the phase reads, by name; null: those of `data.corpora`."""


class ScheduleConfig(Section):
    """The length of the run, its batch and its learning rate: one curve, or a list of phases."""

    steps: PositiveInt | None = None
    """Optimizer steps of a run without phases (paper: 500B tokens, 47,684)."""
    sequences_per_step: PositiveInt
    """The global batch size, the same for every layout (paper: 10M tokens, 2,560 sequences)."""
    peak_learning_rate: float = Field(gt=0)
    """The learning rate after warm-up (paper: 4.2e-4); percentages in a curve are shares of it."""
    learning_rate: Curve | None = None
    """The curve of a run without phases, as `warm up over 2000 steps, constant until 80%, cosine to 10%`."""
    phases: tuple[PhaseConfig, ...] = ()
    """Phases that follow each other, in place of `steps` and `learning_rate`."""
    warmup_steps: NonNegativeInt | None = None
    """The older form of `warm up over N steps`, in place of `learning_rate`."""
    drops: tuple[DropConfig, ...] = ()
    """The older form of `constant until 80%, drop to 31.6%`, after `warmup_steps`."""


class OptimizerConfig(Section):
    """AdamW and gradient clipping; weight decay applies to every matrix and to no norm."""

    beta1: float = Field(ge=0, lt=1)
    """Decay of the first moment (paper: 0.9)."""
    beta2: float = Field(ge=0, lt=1)
    """Decay of the second moment (paper: 0.95)."""
    epsilon: float = Field(gt=0)
    """Added to the root of the second moment (not published; 1e-8)."""
    weight_decay: float = Field(ge=0)
    """Decoupled weight decay (paper: 0.1)."""
    gradient_clip: float = Field(ge=0)
    """Largest norm of all gradients together; 0: no clipping (DeepSeek LLM: 1.0)."""


class ParallelConfig(Section):
    """Tensor, sequence, pipeline and data parallelism, as in megatron-core."""

    tensor: PositiveInt
    """The tensor-parallel size: ranks that share the matrices of each layer."""
    sequence: bool
    """Also divide norms and residuals along the sequence (needs `tensor` above 1)."""
    pipeline: PositiveInt
    """The pipeline-parallel size: stages that the layers are divided into."""
    virtual_stages: PositiveInt
    """Model chunks per stage; more than 1 is the interleaved schedule."""
    stage_layers: tuple[PositiveInt, ...] | None
    """Layers of each stage, for example [7, 8, 8, 7]; null divides them evenly."""
    distributed_optimizer: bool
    """Shard master weights and optimizer state over the data-parallel ranks (ZeRO-1)."""
    overlap_communication: bool
    """Reduce gradients and gather parameters during computation (needs `distributed_optimizer`; faster on GPUs)."""
    recompute: Literal["none", "selective", "full"]
    """Activations that the backward pass computes again: none, attention's, or those of full layers."""
    microbatch_sequences: PositiveInt
    """Sequences per microbatch of a rank."""

    @property
    def model_size(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor * self.pipeline


AllowedChange = Literal[
    "seed",
    "schedule.sequences_per_step",
    "schedule.phases",
    "data.tokenizer",
    "data.sequence_length",
    "data.attend_across_documents",
    "data.corpora",
    "data.held_out_share",
]


class CheckpointConfig(Section):
    """When the state is saved; the last step is always saved."""

    every_steps: NonNegativeInt
    """Save after this many steps; 0: never."""
    every_minutes: float = Field(ge=0)
    """Save this many minutes after the last save; 0: never (DeepSeek LLM: 5)."""
    keep: int = Field(ge=2)
    """Newest checkpoints to keep; older ones are deleted when a newer one is complete."""
    asynchronous: bool
    """Whether training continues while a checkpoint is written; needs memory for a copy of the state."""
    max_failures: NonNegativeInt
    """Consecutive failed saves after which training continues; one more ends the run."""
    allowed_changes: tuple[AllowedChange, ...]
    """Keys that may differ from the checkpoint's run, among those that decide the training data and the batch."""


class ValidationConfig(Section):
    """The loss on held-out data."""

    every_steps: NonNegativeInt
    """Validate after this many steps and after the last; 0: never."""
    sequences_per_corpus: PositiveInt
    """Samples from each corpus' held-out part, or from the held-out conversations; fewer if there are not as many."""


class TrackingConfig(Section):
    """Where metrics are reported; metrics.jsonl is always written."""

    console_every_steps: PositiveInt
    """Print a line after this many steps (if the output is not a terminal)."""
    wandb: Literal["auto", "online", "offline", "disabled"]
    """auto: online if an API key is found, else offline. A failure of W&B never stops a run."""
    wandb_project: str
    """The W&B project; the run has the name of its directory."""


class GuardConfig(Section):
    """When a step is not applied, and how long a process may make no progress."""

    non_finite: Literal["stop", "skip", "rewind"]
    """What to do about a loss or gradient that is NaN or infinite: `stop` the run; `skip` the step's data; or `rewind`
    to a checkpoint and skip the data since."""
    spike: Literal["flag", "skip", "rewind"]
    """What to do about a loss or gradient norm far above the earlier ones (record 21): `flag` it in the metrics; or
    `skip` or `rewind` as above."""
    rewind_steps: PositiveInt
    """The least number of steps that `rewind` goes back (PaLM: about 100)."""
    verify_every_steps: NonNegativeInt
    """Compute one step in this many twice and compare it bit for bit, to find faulty hardware; 0: never (record 28).
    Each check takes the time of a step."""
    setup_timeout_seconds: float = Field(gt=0)
    """The longest time without progress before the first step is done."""
    step_timeout_seconds: float = Field(gt=0)
    """The longest time without progress in a step or a validation, unless ten times the median step is longer."""
    save_timeout_seconds: float = Field(gt=0)
    """The longest time without progress in a save, in an evaluation and at the end of the run."""


class RunConfig(Section):
    """A complete run. Relative paths start at the working directory."""

    output: str
    """The run's directory; a rerun continues from the newest checkpoint in it."""
    seed: NonNegativeInt
    """The seed of the order of the data and, without `initial_weights`, of the initial weights."""
    precision: Literal["fp32", "bf16"]
    """Type of activations and of weights in matrix products; gradients, master weights and moments are fp32."""
    model: ModelConfig
    data: DataConfig
    schedule: ScheduleConfig
    optimizer: OptimizerConfig
    parallel: ParallelConfig
    checkpoint: CheckpointConfig
    validation: ValidationConfig
    tracking: TrackingConfig
    guard: GuardConfig
