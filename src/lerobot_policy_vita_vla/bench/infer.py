"""An action chunk from our student and from LeRobot's SmolVLA, around the same VLM, pictures and words.

Both read two pictures, an instruction and a state with a SmolVLM2-500M of 16 layers that has the same weights
in both. Our student answers in the same pass; SmolVLA keeps the pass's keys and values and integrates a flow
with ten passes of its action expert over them. What differs besides belongs to the methods and is not evened
out: chunks of 3 (the paper's) and of 50 actions, the student's chat turn around the words, its state and
query tokens, and SmolVLA's attention in float32 precision. A student that predicts 50 actions runs beside.

A call starts at pictures in [0, 1] and, for the student, at the instruction's text; SmolVLA gets its tokens
made beforehand. In bfloat16 both hold their VLM in it and run under autocast, so no weight is cast.

"Without vision" is the same with an image encoder of no layers in both (patches, norm and projector stay),
since the encoder is most of the work in either and hides what differs.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lerobot_policy_vita_vla.bench import flops, harness, policies, random_vlm, students
from lerobot_policy_vita_vla.vla.action_modules import ActionQueries
from lerobot_policy_vita_vla.vla.engine import Engine
from lerobot_policy_vita_vla.vla.network import VitaVLANetwork

THEIRS, PLAIN, FAST, LONG = "SmolVLA", "student, plain", "student, engine", "student, engine, 50 actions"
LONG_CHUNK = 50
"""SmolVLA's own chunk."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this benchmark."""
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=("bfloat16", "float32"),
        default=["bfloat16", "float32"],
        help="types of the arithmetic; headline figures are the first one's (default: both)",
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)"
    )
    parser.set_defaults(rounds=5)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every type end to end and without vision, and count the work."""
    shape = random_vlm.SHAPES["smolvlm2-500m"]
    if args.toy:
        shape = shape.toy()
    torch.manual_seed(0)
    ours, theirs = pair(shape, args.device)
    comparisons, notes, figures = {}, [], {}
    headline: dict[str, str] = {}
    tokens, layers = {}, {"": None, "_no_vision": 0}
    for dtype in args.dtypes:
        set_type(ours, theirs, dtype)
        for kind, depth in layers.items():
            with encoder_of(ours, theirs, depth):
                calls, engines, tokens = sides(ours, theirs, shape, args.device, dtype)
                found = harness.side_by_side(calls, rounds=args.rounds, warmup=2)
                stopped = [engine.reason for engine in engines if engine.reason is not None]
                if stopped:
                    raise ValueError(f"the engine does not run, so there is nothing to measure: {stopped[0]}")
                if dtype == args.dtypes[0] and not kind:
                    figures["work"] = work(ours, theirs, shape, calls, tokens, args.device)
            what = "without vision" if kind else "end to end"
            comparisons[f"an action chunk, {what}, {dtype}"] = found
            suffix = kind if dtype == args.dtypes[0] else f"{kind}_{dtype}"
            for key, pair_of, words in (
                ("infer_vs_smolvla", f"{THEIRS}/{FAST}", "SmolVLA / student with engine"),
                ("infer_50_vs_smolvla", f"{THEIRS}/{LONG}", "SmolVLA / student of 50 actions with engine"),
                ("infer_engine", f"{PLAIN}/{FAST}", "student, plain / engine"),
            ):
                name = f"{key}{suffix}"
                headline[name] = f"{words}, {what}, {dtype}, time"
                figures |= harness.with_interval(name, found["ratios"][pair_of])
    headline["infer_flop_error"] = "largest error of the formula against the student's counted work"
    figures["infer_flop_error"] = figures["work"]["error"]
    counted = {side: f"{value / 1e9:.0f}" for side, value in figures["work"]["counted"].items()}
    notes.append(
        f"Counted work of a chunk, GFLOP, end to end: {', '.join(f'{k} {v}' for k, v in counted.items())}."
    )
    return figures | {
        "dtype": ", ".join(args.dtypes),
        "setting": (
            f"SmolVLM2-500M with random weights, the first {shape.text[2]} layers, two pictures of "
            f"{shape.image} px; {tokens[THEIRS]} tokens of prompt in SmolVLA, {tokens[FAST]} in the student."
        ),
        "comparisons": comparisons,
        "headline": headline,
        "notes": notes,
        "shape": shape.to_dict(),
        "tokens": tokens,
    }


def pair(shape: random_vlm.Shape, device: str) -> tuple[VitaVLANetwork, nn.Module]:
    """Our network and a SmolVLA policy around VLMs of the same weights."""
    ours = students.network(shape, "freeze_vlm").eval().requires_grad_(False).to(device)
    vlm = ours.backbone.vlm
    if device == "cpu":
        # As a student is built for a CPU (building.py).
        vlm.set_attn_implementation({"vision_config": "sdpa", "text_config": "eager"})
    with tempfile.TemporaryDirectory() as folder:
        # SmolVLA reads its VLM's shape and processor from a name; a folder will do.
        vlm.config.save_pretrained(folder)
        ours.backbone.processor.save_pretrained(folder)
        theirs = policies.smolvla(Path(folder), shape, device, load_vlm_weights=False)
    theirs.model.vlm_with_expert.vlm.load_state_dict(vlm.state_dict())
    return ours, theirs.eval().requires_grad_(False).to(device)


def set_type(ours: VitaVLANetwork, theirs: nn.Module, dtype: str) -> None:
    """Hold the weights in a type: the VLM's of the student (as ``vlm_dtype`` does), all of SmolVLA's."""
    ours.backbone.vlm.to(getattr(torch, dtype))
    theirs.to(getattr(torch, dtype))


@contextlib.contextmanager
def encoder_of(ours: VitaVLANetwork, theirs: nn.Module, layers: int | None):
    """Leave only so many layers in both image encoders; None: all."""
    encoders = [
        vlm.model.vision_model.encoder for vlm in (ours.backbone.vlm, theirs.model.vlm_with_expert.vlm)
    ]
    whole = [encoder.layers for encoder in encoders]
    try:
        for encoder, all_layers in zip(encoders, whole, strict=True):
            encoder.layers = all_layers[:layers] if layers is not None else all_layers
        yield
    finally:
        for encoder, all_layers in zip(encoders, whole, strict=True):
            encoder.layers = all_layers


def sides(
    ours: VitaVLANetwork, theirs: nn.Module, shape: random_vlm.Shape, device: str, dtype: str
) -> tuple[dict[str, Callable[[], object]], list[Engine], dict[str, int]]:
    """What is timed, the engines in it, and the prompt's tokens of either model."""
    from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS

    seen = students.inputs(shape.image, batch_size=1)
    images, state = [image.to(device) for image in seen.images], seen.state.to(device)
    longer = _copy_with_queries(ours, LONG_CHUNK)
    short_engine, long_engine = Engine(ours), Engine(longer)
    words = ours.backbone.processor.tokenizer(seen.tasks[0] + "\n", return_tensors="pt")
    batch = dict(zip(policies.CAMERAS, images, strict=True)) | {
        "observation.state": state,
        OBS_LANGUAGE_TOKENS: words["input_ids"].to(device),
        OBS_LANGUAGE_ATTENTION_MASK: words["attention_mask"].bool().to(device),
    }

    def acting(call: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            kind = torch.device(device).type
            with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=dtype == "bfloat16"):
                return call()

        return run

    calls = {
        THEIRS: acting(lambda: theirs.predict_action_chunk(dict(batch))),
        PLAIN: acting(lambda: ours.act(images, seen.tasks, state)),
        FAST: acting(lambda: short_engine.act(images, seen.tasks, state)),
        LONG: acting(lambda: long_engine.act(images, seen.tasks, state)),
    }
    sizes = tuple(tuple(image.shape[-2:]) for image in images)
    row = ours.backbone.prompts.row(seen.tasks[0], sizes, 1 + students.CHUNK)[0]
    tokens = {
        THEIRS: 2 * shape.image_tokens + words["input_ids"].shape[1] + 1,
        FAST: row["input_ids"].shape[1],
    }
    return calls, [short_engine, long_engine], tokens


def _copy_with_queries(network: VitaVLANetwork, chunk: int) -> VitaVLANetwork:
    """The same network, weights shared, with another number of queries."""
    device = network.queries.vectors.device
    longer = VitaVLANetwork(
        backbone=network.backbone,
        state_encoder=network.state_encoder,
        queries=ActionQueries(num_queries=chunk, width=network.backbone.width, shared=True, init_std=0.02).to(
            device
        ),
        mapper=network.mapper,
        decoder=network.decoder,
        chunk_size=chunk,
    )
    return longer.eval().requires_grad_(False)


def work(
    ours: VitaVLANetwork,
    theirs: nn.Module,
    shape: random_vlm.Shape,
    calls: dict[str, Callable[[], object]],
    tokens: dict[str, int],
    device: str,
) -> dict[str, Any]:
    """FLOP of a chunk: counted, for sides that run operation by operation; the student's by formula."""
    # A recorded graph is replayed whole and shows no operations.
    shown = (THEIRS, PLAIN, FAST) if device == "cpu" else (THEIRS, PLAIN)
    # A CPU's fused attention has no entry among the counted operations; its parts do.
    with sdpa_kernel(SDPBackend.MATH):
        counted = {side: flops.count(calls[side]) for side in shown}
    formula = {side: student_work(ours, shape, tokens[FAST], narrow=side == FAST) for side in (PLAIN, FAST)}
    return {
        "counted": counted,
        "formula": formula,
        "error": max(abs(counted[side] / formula[side] - 1) for side in formula if side in counted),
    }


def student_work(network: VitaVLANetwork, shape: random_vlm.Shape, tokens: int, *, narrow: bool) -> float:
    """FLOP of a chunk by the formulas of `flops`; ``narrow``: the last layer's queries only."""
    hidden, intermediate, layers, _ = shape.vision
    patches = (shape.image // shape.patch) ** 2
    vision = flops.Transformer.encoder(layers=layers, hidden=hidden, intermediate=intermediate)
    picture = vision.forward(patches) + 2 * 3 * shape.patch**2 * hidden * patches
    picture += 2 * hidden * shape.fold**2 * shape.text[0] * shape.image_tokens
    text = students.text_shape(shape)
    total = 2 * picture + text.forward(tokens)
    if narrow:
        one = flops.Transformer(1, text.weights // text.layers, text.width)
        width, _, _, heads, kv_heads = shape.text
        keys_values = 2 * (width // heads) * kv_heads * width
        queries = network.queries.num_queries
        total -= one.forward(tokens) - one.forward(queries, tokens) - 2 * keys_values * (tokens - queries)
    beside = {"state_encoder": 1, "mapper": students.CHUNK, "decoder": students.CHUNK}
    for part, rows in beside.items():
        matrices = (p for p in getattr(network, part).parameters() if p.ndim == 2)
        total += 2 * rows * sum(p.numel() for p in matrices)
    return total
