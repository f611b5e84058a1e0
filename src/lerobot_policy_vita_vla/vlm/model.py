r"""Building the mini VLM: a SmolVLM of about 2 million parameters with its own processor, from nothing.

The classes are transformers' own, so the folder this writes loads like any VLM of the hub, and the code that
distils into it is the code that distils into a large one. The prompt of one picture::

    <|im_start|> user: <fake_token_around_image> <global-img> <image> x 36 <fake_token_around_image> open a
    drawer <end_of_utterance> \n assistant:

Sizes are our choice: 96 px in patches of 8 px give 144 patches, which the connector folds 2 x 2 into 36
image tokens. Small patches because what matters is small (a goal marker is about 3 px wide); a small network
because students run it on two CPU cores, where 64 pictures with their prompts take about 0.1 s in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lerobot_policy_vita_vla.vlm.captions import NUMBERS, vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, SmolVLMForConditionalGeneration, SmolVLMProcessor

PAD, START, END = "<pad>", "<|im_start|>", "<end_of_utterance>"
IMAGE, FAKE, GLOBAL, VIDEO = "<image>", "<fake_token_around_image>", "<global-img>", "<video>"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}:"
    "{% if message['content'] is string %} {{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'text' %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)
"""SmolVLM's form of turns. The space before a text makes its first word the same token as anywhere else."""


BICUBIC = 3
"""PIL's number. SmolVLM's own Lanczos has no tensor version, and transformers would warn at every load."""


@dataclass(frozen=True)
class MiniVLMSize:
    """Sizes of the mini VLM.

    Args:
        image_size: Pixels along each side of the picture.
        patch_size: Pixels along each side of a vision patch.
        fold: Patches along each side that become one image token.
        vision_width: Width of the vision tower.
        vision_layers: Layers of the vision tower.
        vision_heads: Attention heads of the vision tower.
        text_width: Width of the language model.
        text_layers: Layers of the language model.
        text_heads: Attention heads of the language model.
    """

    image_size: int = 96
    patch_size: int = 8
    fold: int = 2
    vision_width: int = 128
    vision_layers: int = 4
    vision_heads: int = 4
    text_width: int = 192
    text_layers: int = 3
    text_heads: int = 4

    @property
    def image_tokens(self) -> int:
        """Tokens that one picture becomes."""
        return (self.image_size // self.patch_size // self.fold) ** 2


def build_tokenizer(texts: Iterable[str] | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which every word of `texts` and every number to 99 is one token.

    Any other text falls apart into bytes, so nothing is ever unknown. Everything is lower case.

    Args:
        texts: What to learn words from; the captions' own vocabulary by default.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = {word for text in (vocabulary() if texts is None else texts) for word in text.lower().split()}
    words |= {str(number) for number in range(NUMBERS)} | {"user:", "assistant:"}
    # A space before, because that is how words stand in a sentence; the roles stand behind a special token.
    corpus = [f" {word.rstrip(',.')}" for word in sorted(words)] + ["user:", "assistant:"]
    trainer = trainers.BpeTrainer(
        vocab_size=8192,  # Far more than there are words: merging stops when every word is whole.
        min_frequency=1,
        special_tokens=[PAD, START, END, IMAGE, FAKE, GLOBAL, VIDEO],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        # SmolVLM's processor reads these as attributes of the tokenizer.
        extra_special_tokens={
            "image_token": IMAGE,
            "fake_image_token": FAKE,
            "global_image_token": GLOBAL,
            "video_token": VIDEO,
            "end_of_utterance_token": END,
        },
    )


def build_processor(size: MiniVLMSize | None = None) -> SmolVLMProcessor:
    """The processor: pictures to `size.image_size` pixels without tiling, text by `build_tokenizer`."""
    from transformers import SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    size = size or MiniVLMSize()
    edge = {"longest_edge": size.image_size}
    # SmolVLM tiles pictures by default, which would turn a picture larger than 96 px into dozens of image
    # tokens.
    image = SmolVLMImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False, resample=BICUBIC)
    video = SmolVLMVideoProcessor(size=edge, max_image_size=edge, resample=BICUBIC)
    return SmolVLMProcessor(
        image, build_tokenizer(), video, image_seq_len=size.image_tokens, chat_template=CHAT_TEMPLATE
    )


def build_model(
    processor: SmolVLMProcessor, size: MiniVLMSize | None = None
) -> SmolVLMForConditionalGeneration:
    """The network with random weights (float32), drawn from torch's global generator."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    size = size or MiniVLMSize()
    tokenizer = processor.tokenizer
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": size.vision_width,
            "intermediate_size": 3 * size.vision_width,
            "num_hidden_layers": size.vision_layers,
            "num_attention_heads": size.vision_heads,
            "image_size": size.image_size,
            "patch_size": size.patch_size,
            # transformers' 0.02 suits widths near 1000; this is 0.02 * sqrt(1000 / width), rounded.
            "initializer_range": 0.05,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": size.text_width,
            "intermediate_size": 3 * size.text_width,
            "num_hidden_layers": size.text_layers,
            "num_attention_heads": size.text_heads,
            "num_key_value_heads": size.text_heads,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
            "initializer_range": 0.05,
            "pad_token_id": tokenizer.pad_token_id,
            **ids,
        },
        scale_factor=size.fold,
        image_token_id=processor.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        **ids,
    )
    model = SmolVLMForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def chat(processor: SmolVLMProcessor, text: str) -> str:
    """The prompt for one picture and `text`, up to where the answer starts."""
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    return processor.tokenizer.apply_chat_template(
        [message], chat_template=processor.chat_template, add_generation_prompt=True, tokenize=False
    )
