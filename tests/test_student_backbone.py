"""What the backbone refuses, and what it does once only; what every family must do is in test_families.py."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lerobot_policy_vita_vla.vla.backbone import VLMBackbone
from lerobot_policy_vita_vla.vla.lora import add_adapters
from lerobot_policy_vita_vla.vla.vlm_files import load_vlm, resolve_vlm
from tiny_vlms import build, save

TASKS = ["slide", "Open a door with a revolving joint!", "Press a button from the top"]


def make(family, **kwargs):
    return VLMBackbone(*build(family, **kwargs))


def inputs(backbone, cameras=2, suffix=4, size=40, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, 3, size, size, generator=generator) for _ in range(cameras)]
    return images, TASKS, torch.randn(3, suffix, backbone.width, generator=generator) * 0.15


def test_instruction_rows_are_made_once(monkeypatch):
    backbone = make("smolvlm")
    images, tasks, suffix = inputs(backbone)
    calls = []
    original = backbone.prompts._row
    monkeypatch.setattr(backbone.prompts, "_row", lambda *a: calls.append(a) or original(*a))
    with torch.no_grad():
        backbone(images, tasks, suffix)
        backbone(images, tasks, suffix)
    assert len(calls) == 3


def test_placeholder_is_an_ordinary_token_and_the_hook_is_inert_outside_a_pass():
    backbone = make("smolvlm")
    assert backbone.prompts.placeholder_id not in backbone.processor.tokenizer.all_special_ids
    embedding = backbone.vlm.get_input_embeddings()
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(embedding(ids), embedding.weight[ids])


def test_unsupported_model_is_refused_by_the_requirement_it_fails():
    vlm, processor = build("smolvlm")

    class WithoutDecoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_model = nn.Linear(2, 2)

    with pytest.raises(ValueError, match="WithoutDecoder.*decoder of its own"):
        VLMBackbone(WithoutDecoder(), processor)
    with pytest.raises(ValueError, match="Linear.*base model without a vocabulary head"):
        VLMBackbone(nn.Linear(2, 2), processor)
    with pytest.raises(ValueError, match="its base model must accept position_ids"):
        vlm.base_model.forward = lambda input_ids, pixel_values, past_key_values: None
        VLMBackbone(vlm, processor)


def test_processor_without_padding_token_is_refused():
    vlm, processor = build("smolvlm")
    processor.tokenizer.pad_token = None
    with pytest.raises(ValueError, match="padding token"):
        VLMBackbone(vlm, processor)


def test_incomplete_vlm_folder_names_the_missing_files(tmp_path):
    folder = save("smolvlm", tmp_path / "vlm")
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors.*tokenizer\.json"):
        resolve_vlm(str(folder))
    with pytest.raises(ValueError, match="neither 'mini'"):
        resolve_vlm(str(tmp_path / "nothing"))


def rewrite(folder, change, **config):
    """Change a VLM folder's weights, and its configuration where it speaks of embeddings."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    stored = json.loads((folder / "config.json").read_text())
    for section in (stored, stored["text_config"]):
        section.update(config)
    (folder / "config.json").write_text(json.dumps(stored))
    return str(folder)


def load(folder):
    return load_vlm(folder, revision=None, dtype="float32", attention="sdpa")


HEAD, WORDS = "lm_head.weight", "model.text_model.embed_tokens.weight"


def test_tied_embeddings_saved_wrongly_are_refused(tmp_path):
    # Stored once, but the configuration says that there are two.
    folder = save("smolvlm", tmp_path / "one", tied=True)
    with pytest.raises(ValueError, match=r"lacks the weights lm_head\.weight.*tie_word_embeddings=true"):
        load(rewrite(folder, lambda w: None, tie_word_embeddings=False))
    # Two different ones, but the configuration says that they are one.
    folder = save("smolvlm", tmp_path / "two")
    with pytest.raises(ValueError, match="tie_word_embeddings=true in its config.json, but two different"):
        load(rewrite(folder, lambda w: None, tie_word_embeddings=True))
    # One, under the other's name: the same model.
    folder = save("smolvlm", tmp_path / "renamed", tied=True)
    expected = load(str(folder)).get_input_embeddings().weight
    renamed = load(rewrite(folder, lambda w: w.update({HEAD: w.pop(WORDS)})))
    assert torch.equal(renamed.get_input_embeddings().weight, expected)


def test_missing_and_cut_off_weights_are_refused(tmp_path):
    folder = save("smolvlm", tmp_path / "vlm")
    layer = "model.text_model.layers.1.mlp.up_proj.weight"
    with pytest.raises(ValueError, match=r"lacks the weights model\.text_model\.layers\.1\.mlp\.up_proj"):
        load(rewrite(folder, lambda w: w.pop(layer)))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="damaged or cut off.*again"):
        load(str(folder))


def test_weights_of_several_types_are_refused():
    vlm, processor = build("smolvlm")
    vlm.base_model.get_encoder(modality="image").to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"several types \(\d+ of float32, \d+ of bfloat16\).*vlm_dtype"):
        VLMBackbone(vlm, processor)


def test_a_processor_that_tiles_is_refused_unless_it_can_be_told_not_to():
    # These tile by default, and have a switch.
    for family, switch in (("internvl", "crop_to_patches"), ("smolvlm", "do_image_splitting")):
        vlm, processor = build(family)
        setattr(processor.image_processor, switch, True)
        assert (
            make(family).prompts.encode([torch.rand(1, 3, 40, 90)], TASKS[:1], 4).tokens["input_ids"].shape[1]
            == VLMBackbone(vlm, processor)
            .prompts.encode([torch.rand(1, 3, 40, 90)], TASKS[:1], 4)
            .tokens["input_ids"]
            .shape[1]
        )
    # This one tiles a lone image as finely as its grids allow, and has none.
    backbone = make("llava_onevision", vision={"pinpoints": [[32, 32], [64, 64]]})
    suffix = torch.zeros(1, 4, backbone.width)
    with pytest.raises(ValueError, match=r"cuts each image of 64 x 64 px into 5 tiles.*smaller images"):
        backbone([torch.rand(1, 3, 64, 64)], TASKS[:1], suffix)
    with torch.no_grad():
        backbone([torch.rand(1, 3, 32, 32)], TASKS[:1], suffix)
        backbone([torch.rand(1, 3, 64, 64)] * 2, TASKS[:1], suffix)


def test_lora_targets_outside_the_language_model_are_refused():
    vlm, _ = build("internvl")
    with pytest.raises(
        ValueError, match=r"\['fc1'\], which.*lie outside of it.*its layers are \['down_proj'"
    ):
        add_adapters(vlm, rank=2, alpha=4, targets=["q_proj", "fc1"])
    with pytest.raises(
        ValueError, match=r"names \['attention'\], which the language model does not have; its"
    ):
        add_adapters(vlm, rank=2, alpha=4, targets=["attention"])
    add_adapters(vlm, rank=2, alpha=4, targets=["q_proj"])
    adapted = [n for n, _ in vlm.named_parameters() if ".lora_" in n]
    assert len(adapted) == 4 and all(".language_model." in n and ".q_proj." in n for n in adapted)
