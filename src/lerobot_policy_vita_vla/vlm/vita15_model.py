r"""VITA-1.5's image-text half as a model of transformers: model type `vita_vl`, written by `vita15_convert`.

VITA-1.5 is InternViT, a projector and Qwen2.5, as InternVL is, but three things differ, and stock InternVL
cannot express them: its projector has no LayerNorm, image features are halved before the projector (folded
into the projector's weights by the converter, so nothing is left of it here), and no token marks where an
image starts or ends::

    <|im_start|>user\n <|image_pad|> x 49 " " <|image_pad|> x 49 " " put the bowl on the stove <|im_end|>\n
    <|im_start|>assistant\n

The tokens per image follow from its size in pixels: 14 px per patch, 2 x 2 patches per token. The paper feeds
200 x 200 px, so 14 x 14 patches (the last 4 px have none) and 7 x 7 = 49 tokens.

`register` makes transformers' Auto classes know the type. `vla/vlm_files.py` calls it; whoever loads a
converted folder with the Auto classes alone does so first::

    from lerobot_policy_vita_vla.vlm.vita15_model import register
    register()
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    InternVLConfig,
    InternVLForConditionalGeneration,
    ProcessorMixin,
)
from transformers.processing_utils import ProcessingKwargs

IMAGE_TOKEN = "<|image_pad|>"
"""Stands where image features go. VITA's code uses the number -200, which no tokenizer gives; this token is
in Qwen2.5's vocabulary and its own embedding is never read."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image_pad|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% if not loop.last %} {% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's turns, parts of a turn separated by one space as in the paper's prompt ("<image> <image> text", from
its published code); no system message unless one is given."""


class VitaVLConfig(InternVLConfig):
    """InternVL's configuration under a type of its own, since the network differs in what no field says."""

    model_type = "vita_vl"


class VitaVLForConditionalGeneration(InternVLForConditionalGeneration):
    """InternVL without the projector's LayerNorm: Linear, GELU, Linear (VITA's `mlp2x_gelu`)."""

    config_class = VitaVLConfig

    def __init__(self, config: VitaVLConfig):
        super().__init__(config)
        self.model.multi_modal_projector.layer_norm = nn.Identity()


class VitaVLProcessorKwargs(ProcessingKwargs, total=False):
    """Defaults of a call."""

    _defaults = {"text_kwargs": {"padding": False, "padding_side": "left", "return_mm_token_type_ids": False}}


class VitaVLProcessor(ProcessorMixin):
    """Text and images -> token ids and pixels, with each image's marker repeated once per image token.

    Args:
        image_processor: Resizes to a fixed size without tiling.
        tokenizer: Qwen2.5's, with `IMAGE_TOKEN`.
        chat_template: Jinja template of a conversation.
        patch_size: Pixels along each side of a patch.
        patches_per_token: Patches along each side that become one image token.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        patch_size: int = 14,
        patches_per_token: int = 2,
        **kwargs: Any,
    ):
        self.patch_size, self.patches_per_token = patch_size, patches_per_token
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    def __call__(
        self, images: Any = None, text: str | list[str] | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Encode prompts.

        Args:
            images: All images of all prompts in order, flat or one list per prompt.
            text: Prompts with one `IMAGE_TOKEN` per image.
            **kwargs: Options of the tokenizer and of the image processor.

        Raises:
            ValueError: Markers and images differ in number, or an image's size does not divide into tokens.
        """
        if text is None:
            raise ValueError("text is missing; pass one prompt per sample, with an image marker per image")
        options = self._merge_kwargs(
            VitaVLProcessorKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs
        )
        text = [text] if isinstance(text, str) else list(text)
        image_inputs: dict[str, Any] = {}
        if images is not None:
            image_inputs = dict(self.image_processor(images=images, **options["images_kwargs"]))
            image_inputs.pop("num_patches", None)
        pixels = image_inputs.get("pixel_values", [])
        markers = sum(prompt.count(self.image_token) for prompt in text)
        if markers != len(pixels):
            raise ValueError(
                f"the prompts hold {markers} image markers and {len(pixels)} images were given; write one "
                f"{self.image_token} per image"
            )
        per_image = iter([self.tokens_per_image(*image.shape[-2:]) for image in pixels])
        expanded = []
        for prompt in text:
            first, *rest = prompt.split(self.image_token)
            expanded.append(first + "".join(self.image_token * next(per_image) + piece for piece in rest))
        return_tensors = options["text_kwargs"].pop("return_tensors", None)
        with_types = options["text_kwargs"].pop("return_mm_token_type_ids", False)
        tokens = self.tokenizer(expanded, **options["text_kwargs"], return_tensors=None)
        self._check_special_mm_tokens(expanded, tokens, modalities=["image"])
        if with_types:
            tokens["mm_token_type_ids"] = self.create_mm_token_type_ids(tokens["input_ids"])
        return BatchFeature(data={**tokens, **image_inputs}, tensor_type=return_tensors)

    def tokens_per_image(self, height: int, width: int) -> int:
        """Image tokens of an image of `height` x `width` px, as the model sees it."""
        rows, columns = height // self.patch_size, width // self.patch_size
        if rows % self.patches_per_token or columns % self.patches_per_token or rows != columns:
            raise ValueError(
                f"{height} x {width} px give {rows} x {columns} patches, which do not fold into tokens of "
                f"{self.patches_per_token} x {self.patches_per_token}; choose a square with an even number "
                f"of patches of {self.patch_size} px, such as 200 (49 tokens, the paper's), 224 or 448"
            )
        return rows * columns // self.patches_per_token**2


def register() -> None:
    """Make transformers' Auto classes load folders of type `vita_vl`."""
    AutoConfig.register(VitaVLConfig.model_type, VitaVLConfig, exist_ok=True)
    AutoModelForImageTextToText.register(VitaVLConfig, VitaVLForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(VitaVLConfig, VitaVLProcessor, exist_ok=True)
