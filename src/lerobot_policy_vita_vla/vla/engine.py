"""Acting fast: the student's one forward pass, with all that can be known beforehand done beforehand.

    frames --engine_pictures--> pixels --.
    instructions --Words (kept)----------+--> engine_network.ActingNetwork --> action chunk
    state -------------------------------'    '---- one CUDA graph on a GPU ----'

What is saved against the plain path (`VitaVLANetwork.act`), which computes the same:

    everywhere   pictures as one stack; no casting of weights under autocast; token embeddings, masks and
                 positions of an instruction made once; no search for image tokens; the last layer's work for
                 the queries only
    on a GPU     layers compiled, shapes padded to a few lengths, the whole replayed as one CUDA graph: no
                 launches of single kernels and no waiting before the result

Before a shape is used for the first time, both paths run on what is asked, and their action features must
agree (`TOLERANCE`). Where they do not, or where the engine has no way for a model, the plain path acts and
the reason is logged, once.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lerobot_policy_vita_vla.contracts import check_shape
from lerobot_policy_vita_vla.vla.compiling import in_a_line
from lerobot_policy_vita_vla.vla.engine_graph import CudaGraph
from lerobot_policy_vita_vla.vla.engine_network import ActingNetwork, Words, acting_copy, masks
from lerobot_policy_vita_vla.vla.engine_pictures import Unfit, restate
from lerobot_policy_vita_vla.vla.engine_precision import LOOSE, PRECISIONS, quantise
from lerobot_policy_vita_vla.vla.engine_vision import fixed_encoder
from lerobot_policy_vita_vla.vla.prompts import pad_left

logger = logging.getLogger(__name__)

MODES = ("auto", "off")

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest relative difference (Euclidean norm over action features) from the plain path, by the arithmetic's
type. Our choice: ten times and more what other kernels for the same sums differ by in tiny random models."""

TEXT_LENGTHS = (32, 40, 48, 64, 96, 128)
"""Lengths to which prompts are padded on a GPU, without image tokens and with the suffix; above the last,
multiples of it. Our choice: LIBERO's instructions in their chat turn take 25 to 45."""

MOST_PROGRAMS, MOST_TEXTS = 16, 16
"""Shapes and lists of instructions that are kept, the latest ones (a list of eight takes 32 MB at 7B)."""


class Engine:
    """Predicts action chunks with a student's network.

    Args:
        network: A `VitaVLANetwork`.
        mode: ``"auto"``, or ``"off"`` for the plain path always.
        precision: Of the language model's products, see engine_precision.py.
        recorded: Whether the pass is recorded as a CUDA graph. None: on a GPU.
        compiled: Whether layers are compiled. None: on a GPU (our choice: on a CPU their time is that of
            matrix products, which compiling does not change).
        padded: Whether prompts are padded to `TEXT_LENGTHS`. None: on a GPU, where fixed shapes are needed.

    Attributes:
        reason: Why the plain path acts; None while the engine does.
    """

    def __init__(
        self,
        network: nn.Module,
        mode: str = "auto",
        precision: str = "full",
        *,
        recorded: bool | None = None,
        compiled: bool | None = None,
        padded: bool | None = None,
    ):
        if mode not in MODES:
            raise ValueError(f"engine must be one of {MODES}, got {mode!r}")
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
        self.network, self.mode, self.precision = network, mode, precision
        # What is None follows the device.
        self._wishes = {"recorded": recorded, "compiled": compiled, "padded": padded}
        self.reason: str | None = None
        self.forget()

    def __reduce__(self):
        # A copy starts anew: what is kept here belongs to these weights, and a CUDA graph cannot be copied.
        return functools.partial(Engine, **self._wishes), (self.network, self.mode, self.precision)

    def _does(self, what: str, device: torch.device) -> bool:
        wish = self._wishes[what]
        return device.type == "cuda" if wish is None else wish

    def forget(self) -> None:
        """Drop all that was prepared; the next call prepares it again."""
        self._weights: tuple | None = None
        self._copy: nn.Module | None = None
        self._texts: dict[tuple, Words] = {}
        self._programs: dict[tuple, Callable[..., tuple[Tensor, Tensor]]] = {}
        self._encoders: dict[tuple, tuple[Callable, ActingNetwork]] = {}
        self._pool: tuple[int, int] | None = None

    def act(self, images: Sequence[Tensor], instructions: Sequence[str], state_BS: Tensor | None) -> Tensor:
        """Action chunk (B, T, A) in environment units, arguments as of `VitaVLANetwork.act`."""
        if self.mode == "off" or self.reason is not None or torch.is_grad_enabled():
            return self.network.act(images, instructions, state_BS)
        for image in images:
            check_shape("a camera's images", image, len(instructions), 3, None, None)
        device = images[0].device
        kind = device.type
        enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        # Buffers made in inference mode could not be used outside of it later.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(kind, dtype, enabled=enabled, cache_enabled=False),
        ):
            try:
                program, inputs = self._prepare(images, instructions, state_BS, dtype if enabled else None)
            except Unfit as unfit:
                self.give_up(str(unfit))
            else:
                return program(*inputs)[1]
        return self.network.act(images, instructions, state_BS)

    def give_up(self, reason: str) -> None:
        """Leave acting to the plain path from now on, and say why, once."""
        if self.mode == "off" or self.reason is not None:
            return
        self.forget()
        self.reason = reason
        logger.warning("The inference engine is off, the plain path acts instead: %s.", reason)

    def _prepare(
        self,
        images: Sequence[Tensor],
        instructions: Sequence[str],
        state_BS: Tensor | None,
        autocast: torch.dtype | None,
    ) -> tuple[Callable[..., tuple[Tensor, Tensor]], list[Tensor | None]]:
        self._follow_weights(autocast, images[0].device)
        words = self._words(tuple(instructions), images)
        inputs = [*images, state_BS, *words]
        key = tuple(None if x is None else (x.shape, x.dtype) for x in inputs)
        if key not in self._programs:
            if len(self._programs) >= MOST_PROGRAMS:
                self._programs.pop(next(iter(self._programs)))
            self._programs[key] = self._program(images, instructions, state_BS, inputs)
        return self._programs[key], inputs

    def _follow_weights(self, autocast: torch.dtype | None, device: torch.device) -> None:
        # One parameter of each part tells whether weights were trained, averaged, loaded or moved.
        if self._weights is None:
            ends = [list(part.values())[-1] for part in self.network.parts().values() if part]
        else:
            ends = self._weights[0]
        # What was made in inference mode keeps no count of its changes.
        states = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in ends]
        now = (ends, autocast, device, states)
        if self._weights is not None and now[1:] == self._weights[1:]:
            return
        self.forget()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise Unfit("the weights belong to a distributed run")
        self._weights = now
        self._copy = quantise(acting_copy(self.network, autocast), self.precision)

    def _words(self, instructions: tuple[str, ...], images: Sequence[Tensor]) -> Words:
        sizes = tuple(tuple(image.shape[-2:]) for image in images)
        key = (instructions, sizes)
        if key in self._texts:
            return self._texts[key]
        backbone, network = self.network.backbone, self.network
        vlm, prompts, device = backbone.vlm, backbone.prompts, images[0].device
        image_id = getattr(vlm.config, "image_token_id", None)
        if image_id is None:
            raise Unfit(f"{type(vlm.config).__name__} does not say which token stands for an image")
        num_queries = network.queries.num_queries
        suffix = num_queries + (network.state_encoder is not None)
        rows = [prompts.row(instruction, sizes, suffix) for instruction in instructions]
        if unknown := {"token_type_ids"} & set(rows[0][0]):
            raise Unfit(f"the model reads {', '.join(unknown)}, by which some tokens see later ones")
        length = max(tokens["input_ids"].shape[1] for tokens, _ in rows)
        pictures = int((rows[0][0]["input_ids"] == image_id).sum())
        if self._does("padded", device):
            length = pictures + padded_length(length - pictures)
        tokens, positions = pad_left(rows, prompts.processor.tokenizer.pad_token_id, length)
        embedded = vlm.get_input_embeddings()(tokens["input_ids"].to(device)).detach()
        eager = vlm.config.get_text_config()._attn_implementation == "eager"
        valid = tokens["attention_mask"].bool()
        mask, last = masks(valid, num_queries, embedded.dtype if eager else None)
        columns = (tokens["input_ids"] == image_id).nonzero()[:, 1].view(len(rows), pictures)
        words = Words(
            embedded,
            positions.to(device),
            columns.to(device),
            None if mask is None else mask.to(device),
            last.to(device),
        )
        if len(self._texts) >= MOST_TEXTS:
            self._texts.pop(next(iter(self._texts)))
        self._texts[key] = words
        return words

    def _program(
        self,
        images: Sequence[Tensor],
        instructions: Sequence[str],
        state_BS: Tensor | None,
        inputs: list[Tensor | None],
    ) -> Callable[..., tuple[Tensor, Tensor]]:
        """What predicts for inputs of these shapes, compared with the plain path on these very inputs."""
        device = images[0].device
        try:
            program = self._recorded(images, inputs)
        except (Unfit, ValueError):
            raise
        except Exception as error:  # compilers and drivers raise whatever they like
            autocast = self._weights[1]
            what = in_a_line(error)
            if not self._does("compiled", device):
                raise Unfit(f"no CUDA graph could be made ({what})") from error
            logger.warning("The inference engine runs without compiled layers: %s.", what)
            self._wishes["compiled"] = False
            self.forget()  # compiled layers cannot be told to be plain again
            self._follow_weights(autocast, device)
            return self._program(images, instructions, state_BS, inputs)
        found = program(*inputs)[0].float()
        wanted = self.network.features(images, instructions, state_BS).float()
        apart = float((found - wanted).norm() / wanted.norm().clamp_min(1e-12))
        kind = self._weights[1] or self.network.backbone.vlm.dtype
        allowed, name = TOLERANCE[kind], str(kind).removeprefix("torch.")
        if self.precision != "full":
            allowed, name = LOOSE, self.precision
        if not apart <= allowed:
            raise Unfit(
                f"its action features differ from the plain path's by {apart:.1e} (relative), more than the "
                f"{allowed:.0e} that {name} allows"
            )
        return program

    def _recorded(
        self, images: Sequence[Tensor], inputs: list[Tensor | None]
    ) -> Callable[..., tuple[Tensor, Tensor]]:
        to_pixels, acting = self._acting(images)
        cameras = len(images)

        def run(*inputs: Tensor | None) -> tuple[Tensor, Tensor]:
            return acting(to_pixels(inputs[:cameras]), *inputs[cameras:])

        if not self._does("recorded", images[0].device):
            run(*inputs)
            return run
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = CudaGraph(run, inputs, self._pool)
        return lambda *inputs: graph(*inputs, constant=len(Words._fields))

    def _acting(self, images: Sequence[Tensor]) -> tuple[Callable, ActingNetwork]:
        """Picture preparation and network for pictures of these sizes and this many samples."""
        sizes = tuple(tuple(image.shape[-2:]) for image in images)
        key = (len(images[0]), sizes)
        if key not in self._encoders:
            backbone = self.network.backbone
            to_pixels = restate(backbone.prompts, sizes, images[0].device)
            made = backbone.prompts.pixels(images)
            encoder = fixed_encoder(
                self._copy.backbone.vlm,
                made["pixel_values"],
                made.get("image_grid_thw"),
                dtype=backbone.vlm.dtype,
            )
            acting = ActingNetwork(self._copy, encoder)
            if self._does("compiled", images[0].device):
                # One by one: all layers of a stack share what is compiled for the first.
                for block in (*encoder.blocks, *acting.layers):
                    block.compile(fullgraph=True, dynamic=False)
            self._encoders[key] = to_pixels, acting
        return self._encoders[key]


def padded_length(tokens: int) -> int:
    """The smallest of `TEXT_LENGTHS` that holds so many tokens."""
    fits = [length for length in TEXT_LENGTHS if length >= tokens]
    return fits[0] if fits else -(-tokens // TEXT_LENGTHS[-1]) * TEXT_LENGTHS[-1]
