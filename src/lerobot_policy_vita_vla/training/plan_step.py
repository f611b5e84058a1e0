"""What one training step takes: memory by kind, arithmetic, and every operation by shape.

    weights     all parts, each in its own type
    gradients   of what learns
    states      AdamW's two moments of what learns
    kept        activations that backward needs
    peak        the most alive at once: forward, backward and update, in which the others overlap

The language model, the added parts and their backward are recorded as they run (plan_record.py). The image
encoder is frozen and keeps nothing (plan_vision.py).

A history (turns.py) has slots in every turn, so it takes one pass with gradient, at align too: what backward
through the frozen language model needs of all tokens is kept, where a single step keeps that of its slots
only. Assumed: every sample has all H steps, and instructions are equally long. Samples from an episode's
start have fewer, so that a batch may take less.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AttentionMaskInterface

from lerobot_policy_vita_vla.training.plan_model import Task, make_network, parts
from lerobot_policy_vita_vla.training.plan_record import Cost, Operation, Recorder, shape_of
from lerobot_policy_vita_vla.training.plan_vision import image_encoder, picture_bytes
from lerobot_policy_vita_vla.vla.backbone import checkpoint_gradients
from lerobot_policy_vita_vla.vla.caches import PrefixCache, PrefixDone
from lerobot_policy_vita_vla.vla.wrap_units import block_classes

FLASH = "vita_plan_fused"
"""Name under which transformers finds an attention that keeps what a fused GPU kernel keeps."""


@dataclass(frozen=True)
class Options:
    """Settings that change what a step takes.

    Args:
        stage: A stage.
        batch_size: Samples of one update on one device, over all its batches.
        accumulation: Batches per update.
        dtype: ``--policy.dtype``.
        vlm_dtype: ``--policy.vlm_dtype``.
        lora_rank: ``--policy.lora_rank``.
        gradient_checkpointing: ``--policy.gradient_checkpointing``.
        devices: Devices.
        sharded: Whether weights, gradients and states are spread over them.
        on_gpu: Whether attention and the update run as on a GPU (fused; all weights at once).
    """

    stage: str
    batch_size: int
    accumulation: int = 1
    dtype: str = "bfloat16"
    vlm_dtype: str = "float32"
    lora_rank: int = 0
    gradient_checkpointing: bool = False
    devices: int = 1
    sharded: bool = False
    on_gpu: bool = True


@dataclass(frozen=True)
class Step:
    """What a step takes; bytes, on one device.

    Attributes:
        weights, gradients, states, kept, peak: See the module's docstring; ``peak`` includes all.
        learned: Trained parameters.
        tensors: In how many tensors they are.
        parameters: All parameters.
        calls: Operations of one batch and how often.
        costs: What each costs.
        update_bytes: Read and written by the optimiser.
    """

    weights: int
    gradients: int
    states: int
    kept: int
    peak: int
    learned: int
    tensors: int
    parameters: int
    calls: Counter[Operation]
    costs: dict[Operation, Cost]
    update_bytes: int

    @property
    def flops(self) -> int:
        """Floating point operations of one batch."""
        return sum(self.costs[o].flops * n for o, n in self.calls.items())


def record_step(task: Task, options: Options) -> Step:
    """Record one step.

    Args:
        task: What is computed.
        options: How.
    """
    attention = _register_flash() if options.on_gpu else "eager"
    with torch.device("meta"):
        network = make_network(
            task,
            stage=options.stage,
            vlm_dtype=options.vlm_dtype,
            lora_rank=options.lora_rank,
            attention=attention,
        )
    with FakeTensorMode():
        _put_on_fake_cpu(network)
        named = [p for group in parts(network).values() for p in group.values()]
        learned = [p for p in named if p.requires_grad]
        trains = options.stage in ("finetune", "only_finetune")
        decoder = network.vlm.base_model.get_decoder().train(trains)
        if options.gradient_checkpointing and trains:
            checkpoint_gradients(network.vlm)
        known = [*network.parameters(), *network.buffers()]
        recorder = Recorder(known)
        size = options.batch_size // options.accumulation
        with recorder:
            # As the policy does, backward runs outside: casts that it does not need are gone by then.
            with torch.autocast("cpu", torch.bfloat16, enabled=options.dtype == "bfloat16"):
                loss = _forward(network, decoder, task, size, trains)
            kept, forward = recorder.alive, recorder.peak
            recorder.peak = recorder.alive
            loss.backward()
            backward = recorder.peak
        gradients = sum(p.grad.nbytes for p in learned if p.grad is not None)
        largest = max(p.nbytes for p in learned)
        unit = _largest_unit(network.vlm)
    weights = sum(t.nbytes for t in {id(t): t for t in known}.values())
    calls, costs, vision_peak = image_encoder(network.vlm, task, size, options.dtype)
    states = 2 * gradients
    # torch's loop over parameters holds one update at a time, its fused list all of them.
    update = gradients + (gradients if options.on_gpu else 2 * largest)
    # The batch holds its pictures throughout, the forward pass what the VLM's processor made of them.
    batch, prepared = picture_bytes(network.vlm, task, size)
    before = max(forward, vision_peak) + prepared
    running = max(before, backward)
    if options.accumulation > 1:
        running += gradients  # those of the earlier batches
    if options.devices > 1 and not options.sharded:
        running, update = running + gradients, update + gradients  # DDP's buckets
    peak = weights + states + batch + max(running, update)
    if options.sharded:
        n = options.devices
        held = (weights + states + gradients) // n
        # Two units are whole at a time, the running one and the next; one gradient is.
        peak = held + batch + max(before, backward - gradients) + 3 * unit
        weights, gradients, states = weights // n, gradients // n, states // n
    return Step(
        weights=weights,
        gradients=gradients,
        states=states,
        kept=kept,
        peak=peak,
        learned=sum(p.numel() for p in learned),
        tensors=len(learned),
        parameters=sum(p.numel() for p in named),
        calls=recorder.calls + calls,
        costs=recorder.costs | costs,
        # Read weight, gradient and two moments, write three of them.
        update_bytes=7 * gradients,
    )


def _put_on_fake_cpu(network: nn.Module) -> None:
    """Meta tensors -> fake ones of a CPU, which autocast and attention treat as real; tied ones stay tied."""
    made: dict[int, Tensor] = {}
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is None:
                    continue
                if id(old) not in made:
                    new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype)
                    made[id(old)] = (
                        nn.Parameter(new, old.requires_grad) if tensors is module._parameters else new
                    )
                tensors[name] = made[id(old)]


def _forward(network: nn.Module, decoder: nn.Module, task: Task, size: int, trains: bool) -> Tensor:
    steps = size * max(task.turns, 1)
    slots = network.queries(steps)
    if network.state_encoder is not None:
        slots = torch.cat([network.state_encoder(torch.empty(steps, task.state_dim)), slots], 1)
    slots = slots.to(network.vlm.get_input_embeddings().weight.dtype)
    read = _turns if task.turns else _one_step
    hidden = read(network, decoder, task, size, slots, trains)
    features = network.mapper(hidden[:, -task.num_queries :])
    if any(p.requires_grad for p in network.decoder.parameters()):
        features = network.decoder(features)
    return F.mse_loss(features.float(), torch.empty(features.shape))


def _one_step(network, decoder, task: Task, size: int, slots_BSD: Tensor, trains: bool) -> Tensor:
    embedding = network.vlm.get_input_embeddings()
    ids = torch.zeros(size, task.prefix_tokens, dtype=torch.long)
    if trains:
        words = embedding(ids)
        return decoder(inputs_embeds=torch.cat([words, slots_BSD], 1), use_cache=False).last_hidden_state
    cache = PrefixCache(config=network.vlm.config.get_text_config())
    cache.leaves_early = True
    with torch.no_grad(), contextlib.suppress(PrefixDone):
        decoder(inputs_embeds=embedding(ids), past_key_values=cache, use_cache=True)
    cache.leaves_early = False
    return decoder(inputs_embeds=slots_BSD, past_key_values=cache, use_cache=True).last_hidden_state


def _turns(network, decoder, task: Task, size: int, slots_nSD: Tensor, trains: bool) -> Tensor:
    per_step = task.suffix_tokens
    ids = torch.zeros(size, task.prefix_tokens + task.turns * per_step, dtype=torch.long)
    samples = torch.arange(size).repeat_interleave(task.turns)[:, None].expand(-1, per_step)
    # Where in the prompt they lie changes nothing.
    columns = torch.arange(task.turns * per_step).view(task.turns, per_step).repeat(size, 1)
    words = network.vlm.get_input_embeddings()(ids).index_put((samples, columns), slots_nSD)
    return decoder(inputs_embeds=words, use_cache=False).last_hidden_state[samples, columns]


def _largest_unit(vlm: nn.Module) -> int:
    classes = set(block_classes(vlm))
    units = [m for m in vlm.modules() if type(m).__name__ in classes]
    units += [m for m in (vlm.get_input_embeddings(), vlm.get_output_embeddings()) if m is not None]
    return max(sum(p.nbytes for p in unit.parameters()) for unit in units)


class _Flash(torch.autograd.Function):
    """Shapes of a fused attention: it keeps its inputs, its output and one number per row."""

    @staticmethod
    def forward(ctx, query, key, value):
        _note(F.scaled_dot_product_attention, query, key, 4.0)
        out = torch.empty_like(query)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx, grad):
        query, key, value, *_ = ctx.saved_tensors
        _note(attention_backward, query, key, 10.0)
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def attention_backward(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Backward of a fused attention, with the forward that it needs: a little more than the step's."""
    with torch.enable_grad():
        inputs = [t.detach().requires_grad_() for t in (query, key, value)]
        F.scaled_dot_product_attention(*inputs).sum().backward()


def _note(function, query: Tensor, key: Tensor, flops_per_pair: float) -> None:
    for recorder in Recorder.running:
        pairs = query.numel() * key.shape[-2]
        shapes = shape_of(query), shape_of(key), shape_of(key)
        moved = 2 * sum(s.bytes for s in shapes)
        recorder.note(Operation(function, shapes, ()), Cost(int(flops_per_pair * pairs), moved))


def _flash(module, query, key, value, attention_mask, **kwargs):
    groups = query.shape[1] // key.shape[1]
    # Grouped heads are copied apart for the kernels that take a padding mask.
    key, value = (t.repeat_interleave(groups, 1) if groups > 1 else t for t in (key, value))
    return _Flash.apply(query, key, value).transpose(1, 2), None


def _register_flash() -> str:
    AttentionInterface.register(FLASH, _flash)
    AttentionMaskInterface.register(FLASH, lambda *args, **kwargs: None)
    return FLASH
