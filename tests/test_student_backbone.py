"""The backbone gives the same numbers padded or alone, cached or in one pass, from its processor's inputs."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lerobot_policy_vita_vla.vla.backbone import VLMBackbone
from lerobot_policy_vita_vla.vla.vlm_files import (
    empty_vlm,
    load_processor,
    load_vlm,
    resolve_vlm,
    stored_config,
)
from tiny_vlms import FAMILIES, build, save

TASKS = ["slide", "Open a door with a revolving joint!", "Press a button from the top"]


def make(family, **kwargs):
    return VLMBackbone(*build(family, **kwargs))


def inputs(backbone, cameras=2, suffix=4, size=40, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, 3, size, size, generator=generator) for _ in range(cameras)]
    return images, TASKS, torch.randn(3, suffix, backbone.width, generator=generator) * 0.15


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_batch_equals_single_samples(family, attention):
    backbone = make(family)
    backbone.vlm.set_attn_implementation(attention)
    images, tasks, suffix = inputs(backbone)
    with torch.no_grad():
        batch = backbone(images, tasks, suffix)
        alone = [
            backbone([image[i : i + 1] for image in images], [tasks[i]], suffix[i : i + 1]) for i in range(3)
        ]
    assert (batch - torch.cat(alone)).abs().max() < 1e-5
    assert batch.std() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_pass_equals_one_pass_in_values_and_gradients(family):
    backbone = make(family)
    backbone.requires_grad_(False)
    images, tasks, suffix = inputs(backbone)
    suffix.requires_grad_()
    # A random read-out: the norm of a normalised hidden state is constant and has no gradient to compare.
    readout = torch.randn(3, 4, backbone.width, generator=torch.Generator().manual_seed(2))
    hidden, gradients = [], []
    for cached in (False, True):
        backbone.cached = cached
        out = backbone(images, tasks, suffix)
        gradients += torch.autograd.grad((out * readout).sum(), suffix)
        hidden.append(out.detach())
    assert (hidden[0] - hidden[1]).abs().max() < 1e-5
    assert (gradients[0] - gradients[1]).abs().max() < 1e-5 * gradients[0].abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_prefix_pass_skips_what_nobody_reads_but_not_in_distributed_runs(family, monkeypatch):
    backbone = make(family)
    backbone.requires_grad_(False)
    images, tasks, suffix = inputs(backbone)
    suffix.requires_grad_()
    backbone.cached = True
    calls = []
    decoder = backbone.vlm.base_model.get_decoder()
    for index, layer in enumerate(decoder.layers):
        layer.mlp.register_forward_hook(lambda module, args, out, i=index: calls.append(i))
    last = len(decoder.layers) - 1
    early = backbone(images, tasks, suffix)
    assert calls.count(last) == 1 and calls.count(0) == 2  # the suffix only, against prefix and suffix
    calls.clear()
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    whole = backbone(images, tasks, suffix)
    assert calls.count(last) == 2
    assert torch.equal(early, whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_input_reaches_the_suffix_and_no_later_token_an_earlier(family):
    backbone = make(family)
    images, tasks, suffix = inputs(backbone)
    with torch.no_grad():
        reference = backbone(images, tasks, suffix)
        for camera in range(2):
            other = [image.flip(-1) if i == camera else image for i, image in enumerate(images)]
            assert (backbone(other, tasks, suffix) - reference).abs().max() > 1e-3
        assert (backbone(images, tasks[::-1], suffix)[0] - reference[0]).abs().max() > 1e-3
        changed = suffix.clone()
        changed[:, 2] += 0.5
        difference = (backbone(images, tasks, changed) - reference).abs().amax(dim=(0, 2))
    assert difference[:2].max() < 1e-5 and difference[2:].min() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_and_pixels_are_what_the_processor_makes_of_the_chat(family):
    backbone = make(family)
    prompts = backbone.prompts
    generator = torch.Generator().manual_seed(3)
    frames = torch.randint(0, 256, (3, 2, 3, 48, 48), dtype=torch.uint8, generator=generator)
    made = prompts.encode([frames[:, 0] / 255, frames[:, 1] / 255], TASKS, 4)
    for i, task in enumerate(TASKS):
        content = [{"type": "image", "image": frame} for frame in frames[i]] + [
            {"type": "text", "text": task}
        ]
        theirs = backbone.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt", "images_kwargs": prompts.image_options},
        )
        length = theirs["input_ids"].shape[1]
        mask = made.tokens["attention_mask"][i]
        assert mask.sum() == length + 4 and mask[-length - 4 :].all()
        assert torch.equal(made.tokens["input_ids"][i, -length - 4 : -4], theirs["input_ids"][0])
        if "mm_token_type_ids" in theirs:
            assert torch.equal(
                made.tokens["mm_token_type_ids"][i, -length - 4 : -4], theirs["mm_token_type_ids"][0]
            )
        pixels, per_sample = made.pixels["pixel_values"], theirs["pixel_values"]
        if family != "smolvlm":  # Images of all samples in one row.
            pixels = pixels.view(3, -1, *pixels.shape[1:])
            per_sample = per_sample.unsqueeze(0)
        assert torch.equal(pixels[i], per_sample[0])


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


@pytest.mark.parametrize("family", FAMILIES)
def test_autocast_runs_on_float32_weights_and_bfloat16_weights_run(family):
    backbone = make(family)
    images, tasks, suffix = inputs(backbone)
    with torch.no_grad():
        reference = backbone(images, tasks, suffix)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = backbone(images, tasks, suffix)
        backbone.to(torch.bfloat16)
        half = backbone(images, tasks, suffix)
    assert half.dtype == torch.bfloat16
    for other in (autocast, half):
        assert ((other - reference).norm() / reference.norm()) < 0.05


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_parts_hold_every_parameter_once(family, tied):
    backbone = make(family, tied=tied)
    parts = backbone.parts()
    names = [name for part in parts.values() for name in part]
    assert sorted(names) == sorted(name for name, _ in backbone.named_parameters())
    assert parts["vision"] and parts["projector"] and parts["language"]
    assert bool(parts["lm_head"]) is not tied
    assert all(
        "embed_tokens" not in name for part in ("vision", "projector", "lm_head") for name in parts[part]
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_model_is_rebuilt_from_its_stored_config_alone(family, tied, tmp_path):
    folder = save(family, tmp_path / "vlm", tied=tied)
    vlm = load_vlm(str(folder), revision=None, dtype="float32", attention="sdpa")
    stored = json.loads(json.dumps(stored_config(vlm)))
    assert str(tmp_path) not in json.dumps(stored)
    rebuilt = empty_vlm(stored, dtype="float32", attention="sdpa")
    assert type(rebuilt) is type(vlm)
    rebuilt.load_state_dict(vlm.state_dict())
    processor = load_processor(folder)
    first, second = VLMBackbone(vlm.eval(), processor), VLMBackbone(rebuilt.eval(), processor)
    with torch.no_grad():
        args = inputs(first)
        assert torch.equal(first(*args), second(*args))


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


def test_benchmark_of_the_align_step_finds_equal_gradients_and_less_memory():
    path = Path(__file__).parent.parent / "runs" / "bench_align.py"
    spec = importlib.util.spec_from_file_location("bench_align", path)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    result = bench.benchmark_align(text={}, vision={}, image_size=32, batch_size=2, repeats=1)
    assert result["align_grad_diff"] < 1e-5 and result["align_memory_ratio"] > 1.5
    assert result["align_speedup"] > 0
