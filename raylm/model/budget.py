"""What a job's model costs before anything is started, by arithmetic alone.

The formulas count what this stack really holds: transformers' modules, raylm's loss, DeepSpeed 0.19's ZeRO engines.
Tests hold every part against tensors counted in a live run. Not counted: what the allocator wastes and what CUDA and
NCCL take for themselves; `RESERVE_BYTES` and `RESERVE_SHARE` stand for them when the plan says what fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raylm.config.job import Job
from raylm.config.model import ModelSettings
from raylm.model.flops import ModelShape, flops_per_token, shape_of

STAGES = (0, 1, 2, 3)
GPU_BYTES = 80_000_000_000
RESERVE_BYTES = 1_500_000_000  # CUDA context, NCCL channels, cuBLAS workspaces
RESERVE_SHARE = 0.05  # of the card, to fragmentation

# Elements of gradient that train/engine.py sends at once. DeepSpeed's default of 5e8 is 2 GB of buffer.
BUCKET_ELEMENTS = 50_000_000
LIVE_ELEMENTS = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters and sub_group_size
REPLICA_BUCKET_ELEMENTS = 500_000_000  # DeepSpeed's all-reduce bucket at stage 0
# Logits that objectives/cross_entropy.py widens to fp32 at once: 64 MB. Whole ones of 8 x 2048 tokens at 32 000 words
# are 2.1 GB.
CHUNK_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Memory:
    """Bytes on one worker at the peak of a step, by part; `host_bytes` is in the node's memory beside them.

    `buffers_bytes` are gradient buckets, weights gathered by stage 3, and what the optimizer's step needs beyond what
    activations leave free. `building_bytes` are held before the first step, when stage 3 cuts one weight after another.
    """

    stage: int
    workers: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    buffers_bytes: int
    building_bytes: int
    host_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of the device's parts in a step."""
        return (
            self.weights_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.activations_bytes
            + self.buffers_bytes
        )

    @property
    def needed_bytes(self) -> int:
        """What the device must have: for a step, or for building the engine where that takes more."""
        return max(self.total_bytes, self.building_bytes)


@dataclass(frozen=True)
class Plan:
    """What a job costs, for each ZeRO stage at each number of workers."""

    model: str
    dtype: str
    shape: ModelShape
    sequence_length: int
    micro_batch: int
    sequences: int
    activation_checkpointing: bool
    offload_optimizer: bool
    stage: int
    flops_per_token: int
    gpu_bytes: int
    memories: tuple[Memory, ...]

    @property
    def usable_bytes(self) -> int:
        """What of the GPU's memory tensors can have."""
        return round(self.gpu_bytes * (1 - RESERVE_SHARE)) - RESERVE_BYTES

    @property
    def workers(self) -> tuple[int, ...]:
        """The numbers of workers that the plan covers, ascending."""
        return tuple(sorted({memory.workers for memory in self.memories}))

    def at(self, stage: int, workers: int) -> Memory:
        """One cell of the plan."""
        return next(m for m in self.memories if (m.stage, m.workers) == (stage, workers))

    def fitting(self, workers: int) -> tuple[int, ...]:
        """The stages that fit the GPU at this number of workers."""
        return tuple(stage for stage in STAGES if self.at(stage, workers).needed_bytes <= self.usable_bytes)


def plan(
    job: Job,
    vocab_size: int | None = None,
    *,
    sequence_length: int | None = None,
    gpu_bytes: int = GPU_BYTES,
    workers: Sequence[int] | None = None,
) -> Plan:
    """The plan of a job, at workers.min and workers.max unless told others.

    Without a manifest to ask, the vocabulary and the row length are those that `raylm prepare` would make.
    """
    vocabulary = vocab_size or job.prepare.tokenizer.vocab_size
    length = sequence_length or job.prepare.sequence_length
    shape = shape_of(job.model, vocabulary, length, job.objective.auto_class)
    counts = sorted(set(workers or (job.workers.min, job.workers.max)))
    return Plan(
        model=_name(job.model),
        dtype=job.model.dtype,
        shape=shape,
        sequence_length=length,
        micro_batch=job.batch.micro_batch,
        sequences=job.batch.sequences,
        activation_checkpointing=job.model.activation_checkpointing,
        offload_optimizer=job.zero.offload_optimizer,
        stage=job.zero.stage,
        flops_per_token=flops_per_token(shape, length),
        gpu_bytes=gpu_bytes,
        memories=tuple(memory(job, shape, length, stage, count) for count in counts for stage in STAGES),
    )


def memory(job: Job, shape: ModelShape, sequence_length: int, stage: int, workers: int) -> Memory:
    """One worker's bytes at a ZeRO stage and a number of workers, if a micro-batch runs on each."""
    wide = job.model.dtype == "fp32"
    size = 4 if wide else 2
    whole = shape.parameters
    part = -(-whole // workers)
    offload = job.zero.offload_optimizer and stage > 0
    weights = size * (part if stage == 3 else whole)
    gradients = _gradients(stage, size, whole, part)
    # Masters and two moments in fp32; stage 0 in fp32 trains the weights themselves.
    optimizer = 8 * whole if stage == 0 and wide else 12 * (whole if stage == 0 else part)
    activations = activation_bytes(job.model, shape, sequence_length, job.batch.micro_batch)
    buffers = _buckets(stage, size, whole, workers, offload=offload)
    if stage == 3:
        buffers += size * shape.largest  # a parameter's whole gradient, before it is cut
    step = _step_copies(stage, wide, shape, part)
    host = 0
    if offload:
        # Optimizer and gradient shares move to the host, the latter also as they add up and as the step reads them.
        host = optimizer + (8 if stage == 3 else 4 + size) * part
        gradients = gradients if stage == 1 else 0
        buffers += 8 * shape.largest  # a parameter's gradient on its way
        optimizer = step = 0
    return Memory(
        stage=stage,
        workers=workers,
        weights_bytes=weights,
        gradients_bytes=gradients,
        optimizer_bytes=optimizer,
        activations_bytes=activations,
        buffers_bytes=buffers + max(0, step - activations),
        building_bytes=size * (shape.largest + part) if stage == 3 else 0,
        host_bytes=host,
    )


def activation_bytes(settings: ModelSettings, shape: ModelShape, sequence_length: int, micro_batch: int) -> int:
    """The most that one micro-batch's forward and backward holds besides weights and gradients.

    Either what every layer keeps and the logits with their gradient, or, where layers are recomputed, their inputs
    and one whole layer. Other families than Llama are taken as Llama-style blocks of their widths.
    """
    size = 4 if settings.dtype == "fp32" else 2
    tokens = micro_batch * sequence_length
    layer = _layer_bytes(settings, shape, sequence_length, size)
    kept = size * shape.hidden if settings.activation_checkpointing else layer
    recomputed = layer if settings.activation_checkpointing else 0
    norm = (4 + 2 * size) * shape.hidden
    # In the loss: logits and their gradient in the model's type; below fp32 also a chunk twice over in fp32.
    chunk = 4 * min(tokens * shape.vocabulary, max(CHUNK_ELEMENTS, shape.vocabulary))
    loss = tokens * (norm + 2 * size * shape.vocabulary) + (2 * chunk if size < 4 else 0)
    transient = 2 * size * (shape.intermediate + shape.hidden)  # gradients inside the block that goes backward
    if settings.attention == "eager":
        transient = max(transient, shape.heads * sequence_length * (4 + size))
    backward = tokens * (recomputed + transient)
    mask = (1 + size) * tokens * sequence_length if settings.document_attention else 0
    return tokens * shape.layers * kept + max(loss, backward) + mask


def _layer_bytes(settings: ModelSettings, shape: ModelShape, sequence_length: int, size: int) -> int:
    """What one Llama block keeps per token for its backward pass."""
    norms = 2 * ((4 + 2 * size) * shape.hidden + 4)  # the input in fp32, normalised, scaled; a scale per token
    attention = size * (2 * shape.query_width + 2 * shape.key_width)  # queries, keys, values and the output
    if settings.attention == "eager":
        attention += shape.heads * sequence_length * (4 + (size if size < 4 else 0))  # the scores, in both types
    else:
        attention += 4 * shape.heads  # one log-sum-exp per head
    return norms + attention + 4 * size * shape.intermediate  # gate, its activation, up, their product


def _gradients(stage: int, size: int, whole: int, part: int) -> int:
    """Gradients held when the last micro-batch of a step goes backward."""
    if stage == 0:
        return size * whole
    if stage == 1:
        # In bf16 DeepSpeed adds up in an fp32 copy of the whole, beside the bf16 gradients themselves.
        return 4 * whole if size == 4 else 4 * whole + size * whole
    return 4 * part


def _buckets(stage: int, size: int, whole: int, workers: int, *, offload: bool) -> int:
    """Buffers of communication, and the weights that stage 3 has gathered at any time."""
    bucket = size * min(BUCKET_ELEMENTS, whole)
    if stage == 0:
        return size * min(REPLICA_BUCKET_ELEMENTS, whole) if workers > 1 else 0
    if stage == 1 and size == 2 and not offload:
        return 0  # reduced in place
    if stage < 3:
        return 2 * bucket  # one is filled while the other is sent
    gathered = size * min(LIVE_ELEMENTS, whole) if workers > 1 else 0
    return bucket + gathered


def _step_copies(stage: int, wide: bool, shape: ModelShape, part: int) -> int:
    """What the optimizer's step needs when activations are gone."""
    if stage == 0:
        return 0 if wide else 4 * shape.parameters  # fp32 gradients
    if stage == 3:
        return 4 * min(part, LIVE_ELEMENTS)
    if wide:
        return 4 * part  # gradients flattened
    return 8 * min(shape.largest, part)  # one gradient in fp64, for its norm


def _name(settings: ModelSettings) -> str:
    if settings.preset:
        return settings.preset
    if isinstance(settings.config, dict):
        return str(settings.config.get("model_type", "inline config"))
    return str(settings.path or settings.config)
