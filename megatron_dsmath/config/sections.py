"""One run, whole: what `dsmath train RUN.yaml` reads."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt


class Section(BaseModel):
    """Strict: a number in quotes or a boolean where a number belongs is a mistake, not a conversion."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class CorpusConfig(Section):
    """One source of the mixture."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """How metrics and reports call it."""
    weight: float = Field(gt=0)
    """Its share of the tokens, relative to the other weights (paper: 56, 4, 10, 20, 10)."""
    paths: tuple[str, ...] = Field(min_length=1)
    """Prefixes of .bin/.idx pairs, or patterns of them (`data/math_*`)."""
    max_epochs: float | None = Field(default=None, gt=0)
    """Refuse a plan that reads the corpus more often than this; null allows any number."""


class ConversationsConfig(Section):
    """A set of examples, as `dsmath sft build` writes it."""

    prefix: str
    """The prefix of the set."""
    packing: Literal["next-fit", "best-fit", "split"]
    """How its examples fill sequences (paper: random concatenation, which is next-fit; record 23)."""


class DataConfig(Section):
    """Either a mixture or conversations, and how they are cut into samples."""

    tokenizer: str
    """The tokenizer the data was made with: a folder, a `tokenizer.json` or a SentencePiece `.model`."""
    sequence_length: PositiveInt
    """Tokens a sample trains on; a sample holds one more (paper: 4096)."""
    attend_across_documents: bool
    """Whether a token sees the documents before its own in a sample, as is common in pretraining (record 17)."""
    corpora: tuple[CorpusConfig, ...]
    """The sources of the mixture; an empty list with conversations."""
    conversations: ConversationsConfig | None
    """The set to fine-tune on; null with a mixture."""
    held_out_share: float = Field(ge=0, lt=0.5)
    """Share of each corpus, or source of conversations, kept for validation and never trained on."""


class GuardConfig(Section):
    """When a step is not applied, and how long a process may stand still."""

    non_finite: Literal["stop", "skip", "rewind"]
    """On a loss or gradient that is NaN or infinite: stop, pass over the step's data, or go back as well."""
    spike: Literal["flag", "skip", "rewind"]
    """On a loss or gradient norm far above those before it (record 21): say so in the metrics, or act as above."""
    rewind_steps: PositiveInt
    """How far back `rewind` goes at least, to a checkpoint; the data between is passed over (PaLM: about 100)."""
    verify_every_steps: NonNegativeInt
    """Every so many steps one is computed twice and compared bit for bit, to find a machine that computes wrong; 0:
    never (record 28). Costs a step's time each time."""
    setup_timeout_seconds: float = Field(gt=0)
    """How long no process may stand still before the first step is done."""
    step_timeout_seconds: float = Field(gt=0)
    """The same later, within a step or a validation, unless ten times the median step is longer."""
    save_timeout_seconds: float = Field(gt=0)
    """The same within a save or an evaluation, and at the run's end."""


class ModelConfig(Section):
    """The decoder's shape, its numbers at the start, and which kernels compute it."""

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
    """Rows of the embedding and of the output layer, kept as given, never padded (paper: 102400)."""
    max_position_embeddings: PositiveInt
    """Longest sequence the exported model announces; no parameter depends on it (paper: 4096)."""
    norm_epsilon: float = Field(gt=0)
    """Added to the mean square in RMSNorm (paper: 1e-6)."""
    rope_theta: float = Field(gt=0)
    """Base of the rotary frequencies (paper: 10000)."""
    initial_std: float = Field(gt=0)
    """Standard deviation of weights drawn from the seed (DeepSeek LLM: 0.006); unused with `initial_weights`."""
    initial_weights: str | None
    """A Hugging Face folder or a checkpoint to start from; null draws the weights from the seed."""
    kernels: Literal["torch", "transformer_engine"]
    """Who computes norms, linear layers and attention: torch runs everywhere, TransformerEngine on NVIDIA GPUs."""

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
        """Floating-point operations a trained token costs, forward and backward, causal attention counted half.

        Source: Megatron-LM's present convention (6 N_matmul + 6 layers x hidden x sequence); the input embedding
        is a look-up and costs none.
        """
        matrix_parameters = self.parameters - self.vocabulary_size * self.hidden_size
        matrix_parameters -= (2 * self.layers + 1) * self.hidden_size
        attention = 6 * self.layers * self.attention_heads * self.head_size * sequence_length
        return 6 * matrix_parameters + attention


class OptimizerConfig(Section):
    """AdamW's numbers and the clip; weight decay holds for every matrix and for no norm."""

    beta1: float = Field(ge=0, lt=1)
    """Decay of the first moment (paper: 0.9)."""
    beta2: float = Field(ge=0, lt=1)
    """Decay of the second moment (paper: 0.95)."""
    epsilon: float = Field(gt=0)
    """Added to the root of the second moment (not published; 1e-8)."""
    weight_decay: float = Field(ge=0)
    """Decoupled weight decay (paper: 0.1)."""
    gradient_clip: float = Field(ge=0)
    """Largest norm of all gradients together; 0 does not clip (DeepSeek LLM: 1.0)."""


AllowedChange = Literal[
    "seed",
    "schedule.sequences_per_step",
    "data.tokenizer",
    "data.sequence_length",
    "data.attend_across_documents",
    "data.corpora",
    "data.held_out_share",
]


class CheckpointConfig(Section):
    """When the state is saved; the last step always is."""

    every_steps: NonNegativeInt
    """Save after this many steps; 0 does not."""
    every_minutes: float = Field(ge=0)
    """Save when this much time has passed since the last one; 0 does not (DeepSeek LLM: 5)."""
    keep: int = Field(ge=2)
    """Newest checkpoints kept; older ones are deleted after a newer one is complete."""
    asynchronous: bool
    """Train on while a checkpoint is written: a step waits for a copy in memory, which takes as much of it."""
    max_failures: NonNegativeInt
    """Saves in a row that a full or failing disk may spoil while training goes on; one more ends the run."""
    allowed_changes: tuple[AllowedChange, ...]
    """Keys whose change since the checkpoint is meant: of those that decide what is learned from which tokens."""


class ValidationConfig(Section):
    """Loss on what is held out."""

    every_steps: NonNegativeInt
    """Validate after this many steps and after the last; 0 does not."""
    sequences_per_corpus: PositiveInt
    """Samples of each corpus' held-out part, or of the held-out conversations; fewer where there are fewer."""


class TrackingConfig(Section):
    """Where the numbers go; metrics.jsonl is always written."""

    console_every_steps: PositiveInt
    """Print a line after this many steps (where the output is no terminal)."""
    wandb: Literal["auto", "online", "offline", "disabled"]
    """auto: online where a key is found, else offline. W&B's absence or failure never stops a run."""
    wandb_project: str
    """The W&B project; the run's name is its directory's."""


class ParallelConfig(Section):
    """Tensor, sequence, pipeline and data parallelism, as megatron-core has them."""

    tensor: PositiveInt
    """Processes that share each layer's matrices."""
    sequence: bool
    """Share norms and residuals along the sequence too (needs `tensor` above 1)."""
    pipeline: PositiveInt
    """Stages the layers are cut into."""
    virtual_stages: PositiveInt
    """Pieces of the model each stage holds; above 1 is the interleaved schedule."""
    stage_layers: tuple[PositiveInt, ...] | None
    """Layers of each stage where they do not divide evenly, for example [7, 8, 8, 7]; null divides evenly."""
    distributed_optimizer: bool
    """Share master weights and optimizer state over the data-parallel processes (ZeRO-1)."""
    overlap_communication: bool
    """Reduce gradients and gather parameters while computing (needs `distributed_optimizer`; pays off on GPUs)."""
    recompute: Literal["none", "selective", "full"]
    """Activations thrown away and computed again in the backward pass: none, attention's, or whole layers."""
    microbatch_sequences: PositiveInt
    """Sequences a process computes at once."""

    @property
    def model_size(self) -> int:
        """Processes that hold one copy of the model."""
        return self.tensor * self.pipeline


class DropConfig(Section):
    """One step of the multi-step rate."""

    after: float = Field(gt=0, lt=1)
    """The share of the run's steps after which it holds (paper: 0.8, 0.9)."""
    factor: float = Field(gt=0, le=1)
    """The rate from there on, as a share of the peak (paper: 0.316, 0.1)."""


class ScheduleConfig(Section):
    """Linear warm-up to the peak, then constant between drops; no drops is a constant rate."""

    steps: PositiveInt
    """Optimizer steps of the whole run (paper: 500B tokens, 47,684)."""
    sequences_per_step: PositiveInt
    """The global batch, whatever the layout (paper: 10M tokens, 2,560 sequences)."""
    peak_learning_rate: float = Field(gt=0)
    """The rate after warm-up (paper: 4.2e-4)."""
    warmup_steps: NonNegativeInt
    """Steps in which the rate climbs to the peak (paper: 2,000)."""
    drops: tuple[DropConfig, ...]
    """Where the rate falls (paper: 31.6% after 80%, 10% after 90%); empty keeps the peak."""


class RunConfig(Section):
    """Everything that decides a run. Relative paths are relative to the working directory."""

    output: str
    """The run's directory; a rerun continues what it finds there."""
    seed: NonNegativeInt
    """Decides the order of the data and, without `initial_weights`, the first weights."""
    precision: Literal["fp32", "bf16"]
    """Of activations and of the weights in matrix products; gradients, master weights and moments are fp32."""
    model: ModelConfig
    data: DataConfig
    schedule: ScheduleConfig
    optimizer: OptimizerConfig
    parallel: ParallelConfig
    checkpoint: CheckpointConfig
    validation: ValidationConfig
    tracking: TrackingConfig
    guard: GuardConfig

    @property
    def tokens_per_step(self) -> int:
        """Tokens an optimizer step trains on."""
        return self.schedule.sequences_per_step * self.data.sequence_length
