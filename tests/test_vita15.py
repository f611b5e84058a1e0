"""The converted VITA-1.5 computes what its publishers' arithmetic says, whatever files it came in."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from lerobot_policy_vita_vla.vla.backbone import VLMBackbone
from lerobot_policy_vita_vla.vla.modeling_vita_vla import VitaVLAPolicy
from lerobot_policy_vita_vla.vla.vlm_files import load_processor, load_vlm, resolve_vlm
from lerobot_policy_vita_vla.vlm import vita15_names as names
from lerobot_policy_vita_vla.vlm.vita15_config import INTERN_VIT_300M
from lerobot_policy_vita_vla.vlm.vita15_convert import convert, model_shapes
from lerobot_policy_vita_vla.vlm.vita15_model import VitaVLConfig
from student_helpers import STATS, install_loader, make_batch, make_config, same_actions, save_teacher
from vita15_helpers import (
    TEXT,
    VISION,
    hidden_states,
    image_tokens,
    published_shapes,
    random_weights,
    write_checkpoint,
    write_settings,
    write_shards,
    write_vision,
)

DOCS = Path(__file__).parents[1] / "docs" / "vita15.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One converted checkpoint for the tests that only read it."""
    root = tmp_path_factory.mktemp("vita15")
    return convert(write_checkpoint(root / "source"), root / "converted", vision=root / "vision")


@pytest.fixture(scope="module")
def model(folder):
    return load_vlm(str(folder), revision=None, dtype="float32", attention="sdpa").eval()


def all_weights(folder):
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


# --- the arithmetic


@pytest.mark.parametrize(("size", "tokens"), [(200, 49), (224, 64), (448, 256)])
def test_image_tokens_are_those_of_the_published_arithmetic(model, size, tokens):
    others, encoder = random_weights()
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = model.get_image_features(pixels, return_dict=True).pooler_output
        theirs = image_tokens(others, encoder, pixels)
    assert ours.shape == (1, tokens, TEXT["hidden_size"])
    assert (ours - theirs).abs().max() < 2e-6 * theirs.abs().max() and theirs.std() > 0.5


def test_hidden_states_are_those_of_the_published_arithmetic(model, folder):
    others, encoder = random_weights()
    pixels = torch.randn(2, 3, 200, 200, generator=torch.Generator().manual_seed(2))
    start, middle, end = [5, 9, 11], [7], [30, 31, 32, 33]
    image = [json.loads((folder / "config.json").read_text())["image_token_id"]] * 49
    ids = torch.tensor([start + image + middle + image + end])
    parts = [start, pixels[0], middle, pixels[1], end]
    with torch.no_grad():
        ours = model.base_model(input_ids=ids, pixel_values=pixels).last_hidden_state[0]
        theirs = hidden_states(others, encoder, parts)
        assert (ours - theirs).abs().max() < 1e-5
        # What stock InternVL would do instead is far away, so the comparison can tell them apart.
        for change in ({"scale": 1.0}, {"layer_norm": True}):
            assert (hidden_states(others, encoder, parts, **change) - theirs).abs().max() > 0.1


def test_names_and_shapes_at_the_real_sizes():
    real = {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    text = TEXT | real | {"num_attention_heads": 28, "num_key_value_heads": 4}
    config = VitaVLConfig(
        text_config=text | {"model_type": "qwen2"},
        vision_config={"attention_bias": True},
        tie_word_embeddings=False,
    )
    shapes = model_shapes(config)
    others, encoder = published_shapes(INTERN_VIT_300M, text)
    expected = {name: shape for name, shape in others.items() if not names.is_dropped(name)}
    assert len(others) - len(expected) == 2
    assert names.expected_shapes(shapes) == (expected, encoder)
    count = sum(torch.Size(shape).numel() for shape in shapes.values())
    # Qwen2.5-7B 7,615,616,512 (its model card: 7.61 B), InternViT 304,012,288, projector 27,532,288.
    assert count == 7_615_616_512 + 304_012_288 + 27_532_288


# --- files


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 3])
def test_any_form_of_the_source_gives_the_same_weights(tmp_path, folder, form, shards):
    source = write_checkpoint(tmp_path / "source", form=form, shards=shards)
    made = convert(source, tmp_path / "out", vision=tmp_path / "vision", max_shard_bytes=100_000)
    first, second = all_weights(folder), all_weights(made)
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    files = sorted(made.glob("*.safetensors"))
    assert len(files) > 3
    largest = max(value.nbytes for value in second.values())
    assert all(file.stat().st_size < max(100_000, largest) + 10_000 for file in files)
    index = json.loads((made / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == second.keys()
    assert resolve_vlm(str(made)) == str(made)
    vlm = load_vlm(str(made), revision=None, dtype="float32", attention="sdpa")
    assert all(torch.equal(value, first[name]) for name, value in vlm.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_image_encoder_comes_from_a_second_folder_where_the_checkpoint_lacks_it(tmp_path, folder, prefix):
    source = write_checkpoint(tmp_path / "source", inside=False)
    encoder = random_weights()[1]
    vision = write_vision(tmp_path / "other", encoder, prefix, shards=2)
    if prefix:  # an InternVL holds more than its image encoder
        shutil.rmtree(vision)
        rest = {"language_model.norm.weight": torch.ones(3), "mlp1.0.weight": torch.ones(3)}
        write_vision(vision, encoder, prefix)
        write_shards(vision, {prefix + k: v for k, v in encoder.items()} | rest, 1)
    made = convert(source, tmp_path / "out", vision=vision)
    first, second = all_weights(folder), all_weights(made)
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_own_image_encoder_goes_before_the_second_folders(tmp_path, folder):
    source = write_checkpoint(tmp_path / "source")
    vision = write_vision(tmp_path / "other", random_weights(seed=5)[1])
    made = convert(source, tmp_path / "out", vision=vision)
    first, second = all_weights(folder), all_weights(made)
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_half_precision_is_moved_bit_for_bit(tmp_path):
    source = write_checkpoint(tmp_path / "source", dtype=torch.bfloat16)
    made = convert(source, tmp_path / "new" / "out", vision=tmp_path / "vision")
    assert json.loads((made / "config.json").read_text())["dtype"] == "bfloat16"
    made = all_weights(made)
    others, encoder = random_weights(dtype=torch.bfloat16)
    assert {value.dtype for value in made.values()} == {torch.bfloat16}
    # Halving is exact, so doubling gives the published weight back.
    assert torch.equal(
        made["model.multi_modal_projector.linear_1.weight"] * 2, others["model.mm_projector.0.weight"]
    )
    assert torch.equal(made["model.multi_modal_projector.linear_1.bias"], others["model.mm_projector.0.bias"])
    fused = torch.cat([made[f"model.vision_tower.encoder.layer.1.attention.{n}_proj.bias"] for n in "qkv"])
    assert torch.equal(fused, encoder["encoder.layers.1.attn.qkv.bias"])
    assert not any("audio" in name for name in made)


def test_types_are_only_changed_on_request(tmp_path):
    source = write_checkpoint(tmp_path / "source", inside=False, dtype=torch.float16)
    vision = write_vision(tmp_path / "other", random_weights(dtype=torch.bfloat16)[1])
    with pytest.raises(ValueError, match=r"several types \(.*bfloat16.*\).*--dtype bfloat16"):
        convert(source, tmp_path / "out", vision=vision)
    made = convert(source, tmp_path / "out", vision=vision, dtype="bfloat16")
    assert {value.dtype for value in all_weights(made).values()} == {torch.bfloat16}


def test_auto_classes_load_and_save_the_folder_again(tmp_path, folder, model):
    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    loaded.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(again).__name__ == "VitaVLForConditionalGeneration"
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    first, second = AutoProcessor.from_pretrained(folder), AutoProcessor.from_pretrained(tmp_path)
    picture = torch.zeros(3, 10, 10, dtype=torch.uint8)
    for processor in (first, second):
        made = processor(text="<|image_pad|> open", images=[picture], return_tensors="pt")
        assert made["input_ids"].shape[1] == len(first.tokenizer(" open")["input_ids"]) + 49
        assert made["pixel_values"].shape == (1, 3, 200, 200)
        assert processor.tokenizer.padding_side == "left"
    said = again.generate(**made, max_new_tokens=2, do_sample=False)
    assert said.shape == (1, made["input_ids"].shape[1] + 2)


def test_the_table_of_the_documentation_is_the_one_that_is_used():
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", DOCS.read_text(), flags=re.MULTILINE)
    written = {theirs: ours.split(", ") for theirs, ours in rows}
    actual: dict[str, list[str]] = {}
    shapes = model_shapes(
        VitaVLConfig(
            text_config=TEXT | {"num_hidden_layers": 1, "model_type": "qwen2"},
            vision_config={"num_hidden_layers": 1, "attention_bias": True, "use_qk_norm": True},
            tie_word_embeddings=False,
        )
    )
    for ours in shapes:
        made = names.origin(ours)
        theirs = (names.VITA_VISION if made.vision else "") + made.name
        pair = [re.sub(r"\.0\.", ".i.", name) if "layer" in name else name for name in (theirs, ours)]
        if ours.startswith("model.language_model."):
            pair = [re.sub(r"(model|language_model)\.(embed|layers|norm).*", r"\1.*", name) for name in pair]
        pair = [re.sub(r"\.(weight|bias)$", "", name) for name in pair]
        if pair[1] not in actual.setdefault(pair[0], []):
            actual[pair[0]].append(pair[1])
    assert written == actual


# --- the processor


def test_processor_gives_49_tokens_per_image_and_nothing_around_them(folder):
    processor = load_processor(folder)
    picture = torch.zeros(3, 64, 80, dtype=torch.uint8)
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "open a door"}]
    turns = [
        {"role": "system", "content": "be quick"},
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {"role": "user", "content": content[1:]},
    ]
    text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|im_start|>system\nbe quick<|im_end|>\n"
        "<|im_start|>user\n<|image_pad|> <|image_pad|> open a door<|im_end|>\n"
        "<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\n<|image_pad|> open a door<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = processor(text=[text], images=[picture] * 3, return_tensors="pt")["input_ids"][0]
    expanded = text.replace("<|image_pad|>", "<|image_pad|>" * 49)
    assert ids.tolist() == processor.tokenizer(expanded)["input_ids"]
    assert (ids == processor.image_token_id).sum() == 3 * 49


def test_pixels_are_resized_to_a_square_and_standardised(folder):
    processor = load_processor(folder)
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(picture).resize((320, 240), Image.Resampling.BICUBIC))
    made = processor(text="<|image_pad|>", images=[Image.fromarray(picture)], return_tensors="pt")
    resized = np.asarray(Image.fromarray(picture).resize((200, 200), Image.Resampling.BICUBIC)) / 255.0
    expected = (resized - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    ours = made["pixel_values"][0].permute(1, 2, 0).numpy()
    # Two libraries' bicubic filters round to bytes: at most one of 255 steps apart.
    assert np.abs(ours - expected).max() < 1.01 / 255 / 0.224


def test_processor_refuses_what_does_not_fit(folder):
    processor = load_processor(folder)
    picture = torch.zeros(3, 64, 80, dtype=torch.uint8)
    with pytest.raises(ValueError, match="1 image markers and 2 images"):
        processor(text="<|image_pad|> x", images=[picture] * 2)
    with pytest.raises(ValueError, match="210 x 210 px give 15 x 15 patches.*such as 200"):
        processor(text="<|image_pad|>", images=[picture], size={"height": 210, "width": 210})


# --- the student


def test_backbone_padded_equals_single_and_cached_equals_full(folder, model):
    backbone = VLMBackbone(model, load_processor(folder))
    backbone.requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 3, 40, 40, generator=generator) for _ in range(2)]
    tasks = ["slide", "Open a door with a revolving joint!", "Press a button from the top"]
    suffix = torch.randn(3, 4, backbone.width, generator=generator, requires_grad=True)
    with torch.no_grad():
        batch = backbone(images, tasks, suffix)
        for i in range(3):
            alone = backbone([image[i : i + 1] for image in images], tasks[i : i + 1], suffix[i : i + 1])
            assert (batch[i] - alone[0]).abs().max() < 1e-5
        other = backbone([images[0].flip(-1), images[1]], tasks, suffix)
        assert (other - batch).abs().max() > 1e-3
    readout = torch.randn(batch.shape, generator=generator)
    gradients = []
    for backbone.cached in (False, True):
        hidden = backbone(images, tasks, suffix)
        assert (hidden - batch).abs().max() < 1e-5
        gradients += torch.autograd.grad((hidden * readout).sum(), suffix)
    assert (gradients[0] - gradients[1]).abs().max() < 1e-5 * gradients[0].abs().max()
    parts = backbone.parts()
    assert len(parts["projector"]) == 4 and parts["vision"] and parts["language"]
    assert list(parts["lm_head"]) == ["vlm.lm_head.weight"]


def test_student_aligns_on_the_converted_folder_and_needs_it_no_more(folder, tmp_path, monkeypatch):
    install_loader(monkeypatch)
    vlm = shutil.copytree(folder, tmp_path / "vlm")
    torch.manual_seed(0)
    config = make_config(save_teacher(tmp_path / "teacher"), vlm, stage="align")
    policy = VitaVLAPolicy(config, dataset_stats=STATS)
    policy.train()
    loss, _ = policy(make_batch())
    loss.backward()
    assert torch.isfinite(loss)
    assert {n.split(".")[1] for n, p in policy.named_parameters() if p.grad is not None} == {
        "state_encoder",
        "queries",
        "mapper",
    }
    policy.eval()
    chunk = policy.predict_action_chunk(make_batch(1))
    policy.save_pretrained(tmp_path / "student")
    shutil.rmtree(vlm)
    loaded = VitaVLAPolicy.from_pretrained(tmp_path / "student")
    assert same_actions(loaded.predict_action_chunk(make_batch(1)), chunk)


def test_settings_of_the_checkpoint_reach_the_model(tmp_path):
    source = write_checkpoint(tmp_path / "source", inside=False)
    changes = {"rope_theta": 5e5, "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}
    write_settings(source, **changes, eos_token_id=2)
    made = convert(source, tmp_path / "out", vision=tmp_path / "vision", image_size=448)
    config = json.loads((made / "config.json").read_text())
    text = config["text_config"]
    assert text["rope_parameters"]["rope_theta"] == 5e5 and text["eos_token_id"] == 2
    assert text["layer_types"] == ["full_attention", "sliding_attention"]
    assert config["image_seq_length"] == 256
    assert config["vision_config"]["num_attention_heads"] == VISION["num_attention_heads"]
    processor = load_processor(made)
    blank = torch.zeros(3, 8, 8, dtype=torch.uint8)
    assert len(processor(text="<|image_pad|>", images=[blank])["input_ids"][0]) == 256
