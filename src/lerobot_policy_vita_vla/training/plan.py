"""Which settings fit a device's memory, how long a step takes with each, and which to use: `vita-vla plan`.

Memory is recorded on shapes (plan_step.py). Time is the sum over the step's operations: each distinct one is
run on the device where it is here; for a device that is not, each takes the longer of its arithmetic and its
memory traffic at the stated share of the data sheet's figures.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from transformers import LlamaConfig, LlamaModel

from lerobot_policy_vita_vla.training.plan_model import Task
from lerobot_policy_vita_vla.training.plan_record import UNCACHED_BYTES, Operation, Recorder, Shape, measure
from lerobot_policy_vita_vla.training.plan_step import Options, Step, record_step

GIB = 2**30
LORA_RANK = 16


@dataclass(frozen=True)
class Device:
    """A device by its data sheet.

    Args:
        gib: Memory.
        tflops: Dense bfloat16 matrix products, 10^12 operations per second.
        gb_per_s: Memory bandwidth, 10^9 bytes per second.
    """

    gib: float
    tflops: float
    gb_per_s: float


DEVICES = {
    "rtx3090": Device(24, 71, 936),
    "rtx4090": Device(24, 165, 1008),
    "l40s": Device(48, 362, 864),
    "a100": Device(80, 312, 2039),
    "h100": Device(80, 989, 3350),
    "h200": Device(141, 989, 4800),
}
"""Data sheets' figures, without sparsity."""
REACHED_COMPUTE, REACHED_BANDWIDTH = 0.4, 0.8
"""Share of them that training reaches (our choice: 394 of 989 TFLOP/s, what good 7B recipes report)."""
FLOAT32_SLOWER = 8
"""Float32 matrix products against bfloat16 ones, TF32 on (data sheets: 2 for TF32 itself, but 8 and more
without tensor cores)."""
CONTEXT_GIB, FRAGMENTED = 0.7, 0.06
"""What a GPU's driver and libraries hold, and the share that an allocator cannot use (our choice: what common
recipes lose)."""


@dataclass(frozen=True)
class Row:
    """One way to train, and what it takes on one device.

    Attributes:
        options: The settings.
        step: Memory and operations of one batch.
        needed_gib: Memory to have, reserves included.
        seconds: Of one update, or None where no device's speed is known.
        reason: What it costs and what it keeps.
    """

    options: Options
    step: Step
    needed_gib: float
    seconds: float | None
    reason: str

    @property
    def samples_per_second(self) -> float | None:
        """On all devices together."""
        return self.options.batch_size * self.options.devices / self.seconds if self.seconds else None

    def flags(self) -> list[str]:
        """Arguments of `vita-vla align`, `vita-vla finetune` or `lerobot-train`."""
        o = self.options
        flags = [f"--batch_size={o.batch_size // o.accumulation}", f"--policy.dtype={o.dtype}"]
        flags.append(f"--policy.vlm_dtype={o.vlm_dtype}")
        if o.accumulation > 1:
            flags.append(f"--policy.accumulation={o.accumulation}")
        if o.gradient_checkpointing:
            flags.append("--policy.gradient_checkpointing=true")
        if o.lora_rank:
            flags.append(f"--policy.lora_rank={o.lora_rank}")
        return flags


def plan(
    task: Task, *, stage: str, batch_size: int, gib: float, devices: int, speed: str | None
) -> list[Row]:
    """Rows in the order in which they are worth trying: closest to the paper's training first, then faster.

    Args:
        task: What is trained.
        stage: A stage.
        batch_size: Samples of one update on one device.
        gib: Memory of one device.
        devices: How many there are.
        speed: A key of `DEVICES`, ``"cuda"`` or ``"cpu"`` (measured here), or None: no times.
    """
    rows = []
    on_gpu = speed != "cpu"
    for options, reason in ways(stage, batch_size, devices):
        options = replace(options, on_gpu=on_gpu)
        step = record_step(task, options)
        at_once = options, step
        # A smaller batch with accumulation trains the same; the largest that fits is the fastest.
        while needed_gib(step, on_gpu) > gib and options.batch_size // options.accumulation > 1:
            options = replace(options, accumulation=_next_divisor(batch_size, options.accumulation))
            step = record_step(task, options)
        if needed_gib(step, on_gpu) > gib:
            options, step = at_once
        if options.accumulation > 1:
            reason += f", in {options.accumulation} batches per update"
        seconds = update_seconds(step, options, speed) if speed else None
        rows.append(Row(options, step, needed_gib(step, on_gpu), seconds, reason))
    return rows


def ways(stage: str, batch_size: int, devices: int) -> Iterator[tuple[Options, str]]:
    """Settings to try and why, the best first."""
    base = Options(stage=stage, batch_size=batch_size, devices=devices)
    if stage not in ("finetune", "only_finetune"):
        yield replace(base, vlm_dtype="bfloat16"), "the VLM stands still, so half precision costs it nothing"
        yield base, "as the VLM's weights may be stored; twice the memory for nothing learned"
        return
    yield base, "every weight learns, nothing is computed twice"
    yield replace(base, gradient_checkpointing=True), "every weight learns; a forward pass more"
    if devices > 1:
        shared = replace(base, sharded=True)
        yield shared, f"every weight learns; weights and states spread over {devices} (configs/fsdp.yaml)"
        yield (
            replace(shared, gradient_checkpointing=True),
            f"every weight learns; spread over {devices} (configs/fsdp.yaml), a forward pass more",
        )
    half = replace(base, vlm_dtype="bfloat16", gradient_checkpointing=True)
    yield half, "every weight learns in half precision, which loses small updates; a forward pass more"
    lora = replace(base, lora_rank=LORA_RANK, vlm_dtype="bfloat16")
    yield lora, "adapters learn on a half-precision VLM, not the paper's training"
    yield (
        replace(lora, gradient_checkpointing=True),
        "adapters learn on a half-precision VLM, not the paper's training; a forward pass more",
    )


def needed_gib(step: Step, on_gpu: bool) -> float:
    """Memory to have for a step, GiB."""
    reserve = (1 + FRAGMENTED, CONTEXT_GIB) if on_gpu else (1.0, 0.0)
    return step.peak / GIB * reserve[0] + reserve[1]


def update_seconds(step: Step, options: Options, speed: str) -> float:
    """Seconds of one update: its batches, then the optimiser.

    Args:
        step: Recorded with these options.
        options: The settings.
        speed: See `plan`.
    """
    if speed in DEVICES:
        device = DEVICES[speed]
        bandwidth = device.gb_per_s * 1e9 * REACHED_BANDWIDTH
        batch = 0.0
        for operation, count in step.calls.items():
            cost = step.costs[operation]
            compute = device.tflops * 1e12 * REACHED_COMPUTE / _slower(operation)
            batch += count * max(cost.flops / compute, cost.bytes / bandwidth)
        return batch * options.accumulation + step.update_bytes / bandwidth
    return sum(operation_seconds(step, speed)) * options.accumulation + update_time(step, speed)


def operation_seconds(step: Step, device: str) -> Iterator[float]:
    """Seconds of all calls of one operation after the other, each measured when it is asked for.

    Args:
        step: One batch.
        device: ``"cuda"`` or ``"cpu"``.
    """
    # A GPU works while Python goes ahead; a CPU does both.
    around = python_seconds() if device == "cpu" else 0.0
    for operation, count in step.calls.items():
        yield count * (measure(operation, device) + around)


@functools.cache
def python_seconds() -> float:
    """What modules, views and autograd take around one operation, on this machine.

    It is what is left of a decoder's step when its operations are taken away, of a decoder so small that
    little else is there.
    """
    config = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=4, num_attention_heads=2, vocab_size=8
    )
    model = LlamaModel._from_config(config, attn_implementation="eager")
    words = torch.zeros(1, 2, 8)

    def step() -> None:
        with torch.enable_grad():  # measuring switches gradients off
            model(inputs_embeds=words, use_cache=False).last_hidden_state.sum().backward()
        model.zero_grad()

    recorder = Recorder([*model.parameters()])
    with recorder:
        step()
    inside = sum(count * measure(operation, "cpu") for operation, count in recorder.calls.items())
    return max(measure(Operation(step, (), ()), "cpu") - inside, 0.0) / recorder.calls.total()


def update_time(step: Step, device: str) -> float:
    """Seconds of AdamW on this device, from a sample of tensors as large as the step's are on average.

    The sample is larger than caches: by the time of the update, activations have been through them.
    """
    size = step.learned // step.tensors
    count = max(1, UNCACHED_BYTES // (4 * 4 * size))
    weights = [torch.nn.Parameter(torch.zeros(size, device=device)) for _ in range(count)]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.AdamW(weights, lr=1e-4)
    optimizer.step()
    return measure(Operation(optimizer.step, (), ()), device) * step.learned / (count * size)


def _slower(operation: Operation) -> float:
    types = {a.dtype for a in operation.args if isinstance(a, Shape)}
    return FLOAT32_SLOWER if torch.float32 in types else 1.0


def _next_divisor(batch_size: int, after: int) -> int:
    return next(k for k in range(after + 1, batch_size + 1) if batch_size % k == 0)
