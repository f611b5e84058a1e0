"""What every VLM family must do, on a tiny random model of it with its real processor.

`runs/families.py` runs this file and writes down, family by family, which of these checks passed.
"""

import functools
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lerobot_policy_vita_vla.vla.backbone import VLMBackbone
from lerobot_policy_vita_vla.vla.modeling_vita_vla import VitaVLAPolicy
from lerobot_policy_vita_vla.vla.stages import TRAINABLE
from lerobot_policy_vita_vla.vla.vlm_files import empty_vlm, load_processor, load_vlm, stored_config
from student_helpers import STATS, A, T, install_loader, make_batch, make_config, same_actions, save_teacher
from tiny_vlms import FAMILIES, build, save

TASKS = ["slide", "Open a door with a revolving joint!", "Press a button from the top"]
ADDED = {"state_encoder", "queries", "mapper"}

pytestmark = pytest.mark.parametrize("family", FAMILIES)
both_ties = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])


@functools.cache
def backbone_of(family, tied=False):
    """One model for all tests that only look."""
    return VLMBackbone(*build(family, tied=tied)).requires_grad_(False)


def inputs(backbone, cameras=2, suffix=4, size=40, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, 3, size, size, generator=generator) for _ in range(cameras)]
    return images, TASKS, torch.randn(3, suffix, backbone.width, generator=generator) * 0.15


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A teacher's folder, and the VLM folder of any family, written once."""
    root = tmp_path_factory.mktemp("families")
    teacher = save_teacher(root / "teacher")

    def folder_of(family, tied=False):
        folder = root / f"{family}-{tied}"
        return folder if folder.is_dir() else save(family, folder, tied=tied)

    return teacher, folder_of


@pytest.fixture
def student(folders, monkeypatch):
    install_loader(monkeypatch)
    teacher, folder_of = folders

    def make(family, continued=None, **settings):
        torch.manual_seed(0)
        config = make_config(teacher, folder_of(family, settings.pop("tied", False)), **settings)
        if continued is not None:
            return VitaVLAPolicy.from_pretrained(continued, config=config)
        return VitaVLAPolicy(config, dataset_stats=STATS)

    return make


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_batch_equals_single_samples(family, attention):
    backbone = VLMBackbone(*build(family))
    backbone.vlm.set_attn_implementation(attention)
    images, tasks, suffix = inputs(backbone)
    with torch.no_grad():
        batch = backbone(images, tasks, suffix)
        alone = [
            backbone([image[i : i + 1] for image in images], [tasks[i]], suffix[i : i + 1]) for i in range(3)
        ]
    assert (batch - torch.cat(alone)).abs().max() < 1e-5
    assert batch.std() > 0.1


def test_cached_pass_equals_one_pass_in_values_and_gradients(family):
    backbone = backbone_of(family)
    images, tasks, suffix = inputs(backbone)
    suffix.requires_grad_()
    # A random read-out: the norm of a normalised hidden state is constant and has no gradient to compare.
    readout = torch.randn(3, 4, backbone.width, generator=torch.Generator().manual_seed(2))
    prompt = backbone.prompts.encode(images, tasks, 4)
    hidden, gradients = [], []
    for way in (backbone.one_pass, backbone.cached_pass):
        out = way(prompt, suffix)
        gradients += torch.autograd.grad((out * readout).sum(), suffix)
        hidden.append(out.detach())
    assert (hidden[0] - hidden[1]).abs().max() < 1e-5
    assert (gradients[0] - gradients[1]).abs().max() < 1e-5 * gradients[0].abs().max()


def test_prefix_pass_skips_what_nobody_reads_but_not_in_distributed_runs(family, monkeypatch):
    backbone = backbone_of(family)
    images, tasks, suffix = inputs(backbone)
    suffix.requires_grad_()
    prompt = backbone.prompts.encode(images, tasks, 4)
    calls = []
    layers = backbone.vlm.base_model.get_decoder().layers
    handles = [
        layer.mlp.register_forward_hook(lambda module, args, out, i=i: calls.append(i))
        for i, layer in enumerate(layers)
    ]
    last = len(layers) - 1
    early = backbone.cached_pass(prompt, suffix)
    assert calls.count(last) == 1 and calls.count(0) == 2  # the suffix only, against prefix and suffix
    calls.clear()
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    whole = backbone.cached_pass(prompt, suffix)
    assert calls.count(last) == 2
    assert torch.equal(early, whole)
    for handle in handles:
        handle.remove()


def test_every_input_reaches_the_suffix_and_no_later_token_an_earlier(family):
    backbone = backbone_of(family)
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


def test_prompt_and_pixels_are_what_the_processor_makes_of_the_chat(family):
    backbone = backbone_of(family)
    prompts, processor = backbone.prompts, backbone.processor
    generator = torch.Generator().manual_seed(3)
    frames = torch.randint(0, 256, (3, 2, 3, 48, 48), dtype=torch.uint8, generator=generator)
    made = prompts.encode([frames[:, 0] / 255, frames[:, 1] / 255], TASKS, 4)
    options = {"return_tensors": "pt", "images_kwargs": prompts.image_options}
    theirs = []
    for i, task in enumerate(TASKS):
        if processor.chat_template is None:
            text = [processor.image_token * 2 + task]
            theirs.append(processor(text=text, images=[list(frames[i])], **options))
            continue
        content = [{"type": "image", "image": frame} for frame in frames[i]]
        chat = [{"role": "user", "content": [*content, {"type": "text", "text": task}]}]
        flags = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}

        theirs.append(processor.apply_chat_template(chat, **flags, processor_kwargs=options))
    for i, one in enumerate(theirs):
        length = one["input_ids"].shape[1]
        mask = made.tokens["attention_mask"][i]
        assert mask.sum() == length + 4 and mask[-length - 4 :].all()
        for name in set(made.tokens) & {"input_ids", "mm_token_type_ids", "token_type_ids"}:
            assert torch.equal(made.tokens[name][i, -length - 4 : -4], one[name][0]), name
    # Idefics keeps a sample's pictures in one row, the others put all pictures of the batch in a row.
    stacked = torch.cat([one["pixel_values"] for one in theirs])
    assert torch.equal(made.pixels["pixel_values"], stacked)


def test_autocast_runs_on_float32_weights_and_bfloat16_weights_run(family):
    backbone = VLMBackbone(*build(family))
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


@both_ties
def test_parts_hold_every_parameter_once(family, tied):
    backbone = backbone_of(family, tied)
    parts = backbone.parts()
    names = [name for part in parts.values() for name in part]
    assert sorted(names) == sorted(name for name, _ in backbone.named_parameters())
    assert parts["vision"] and parts["projector"] and parts["language"]
    assert bool(parts["lm_head"]) is not tied
    embedding = backbone.vlm.get_input_embeddings().weight
    assert [part for part, named in parts.items() if any(p is embedding for p in named.values())] == [
        "language"
    ]


@both_ties
def test_model_is_rebuilt_from_its_stored_config_alone(family, tied, folders):
    folder = folders[1](family, tied)
    vlm = load_vlm(str(folder), revision=None, dtype="float32", attention="sdpa")
    stored = json.loads(json.dumps(stored_config(vlm)))
    assert str(folder.parent) not in json.dumps(stored)
    rebuilt = empty_vlm(stored, dtype="float32", attention="sdpa")
    assert type(rebuilt) is type(vlm)
    rebuilt.load_state_dict(vlm.state_dict())
    processor = load_processor(folder)
    first, second = VLMBackbone(vlm.eval(), processor), VLMBackbone(rebuilt.eval(), processor)
    with torch.no_grad():
        args = inputs(first)
        assert torch.equal(first(*args), second(*args))


@pytest.mark.parametrize("stage", TRAINABLE)
def test_gradients_reach_all_that_learns_and_nothing_else(family, stage, student, tmp_path):
    policy = student(family, stage="align" if stage in ("align", "finetune") else stage)
    if stage == "finetune":
        policy.save_pretrained(tmp_path / "align")
        policy = student(family, tmp_path / "align", stage=stage)
    policy.train()
    policy(make_batch())[0].backward()
    parts = policy.network.parts()
    expected = ADDED | ({"decoder"} if stage != "align" else set())
    expected |= {"language"} if stage in ("finetune", "only_finetune") else set()
    modules = {part: getattr(policy.network, part) for part in (*ADDED, "decoder")}
    modules["language"] = policy.network.backbone.vlm.base_model.get_decoder()
    counts = {part: sum(p.numel() for p in modules[part].parameters()) for part in expected}
    assert policy.trainable == counts
    assert sum(counts.values()) == sum(p.numel() for p in policy.parameters() if p.requires_grad)
    for part, parameters in parts.items():
        for name, parameter in parameters.items():
            assert parameter.requires_grad == (part in expected), name
            assert (parameter.grad is not None) == (part in expected), name
    reached = sum(p.grad.abs().sum() > 0 for part in expected for p in parts[part].values())
    assert reached == sum(len(parts[part]) for part in expected)
    assert policy.network.backbone.cached == (stage in ("align", "freeze_vlm"))


def test_adapters_sit_in_the_language_model_only_and_change_nothing_at_first(family, student, tmp_path):
    align = student(family)
    align.save_pretrained(tmp_path / "align")
    policy = student(family, tmp_path / "align", stage="finetune", lora_rank=2)
    adapters = policy.network.parts()["adapters"]
    decoder = policy.network.backbone.vlm.base_model.get_decoder()
    inside = {id(p) for p in decoder.parameters()}
    assert len(adapters) == 2 * 7 * 2  # A and B of seven projections in two layers.
    assert all(id(p) in inside for p in adapters.values())
    assert {n for n, _ in policy.named_parameters() if ".lora_" in n} == {f"network.{n}" for n in adapters}
    batch = make_batch()
    assert same_actions(policy.predict_action_chunk(batch), align.predict_action_chunk(batch))
    policy.train()
    policy(batch)[0].backward()
    assert set(policy.trainable) == ADDED | {"decoder", "adapters"}
    assert all(p.grad is None for p in policy.network.parts()["language"].values())
    assert all(p.grad is not None for p in adapters.values())


@both_ties
def test_checkpoint_acts_alike_with_teacher_and_vlm_deleted(family, tied, tmp_path, monkeypatch):
    install_loader(monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    teacher, vlm = save_teacher(tmp_path / "teacher"), save(family, tmp_path / "vlm", tied=tied)
    checkpoint = tmp_path / "checkpoint"
    policy = VitaVLAPolicy(make_config(teacher, vlm, stage="only_finetune"), dataset_stats=STATS)
    optimizer = torch.optim.AdamW(policy.get_optim_params())
    policy.train()
    policy(make_batch())[0].backward()
    optimizer.step()
    chunk = policy.predict_action_chunk(make_batch(1))
    policy.save_pretrained(checkpoint)
    shutil.rmtree(teacher)
    shutil.rmtree(vlm)
    # LeRobot's upload takes no .jinja files; the chat template must survive that.
    (checkpoint / "vlm_processor" / "chat_template.jinja").unlink(missing_ok=True)
    loaded = VitaVLAPolicy.from_pretrained(checkpoint)
    assert not loaded.training
    assert same_actions(loaded.predict_action_chunk(make_batch(1)), chunk)
    assert chunk.shape == (4, T, A) and set(chunk[..., 3].unique().tolist()) <= {-1.0, 1.0}
    weights = load_file(checkpoint / "model.safetensors")
    assert not any("teacher" in name for name in weights)
    assert str(Path(tmp_path)) not in json.dumps(loaded.config.vlm_config)


def test_history_is_exact_padded_and_continued(family):
    """One turn per step: rows of other lengths change nothing, nor does going on from keys and values."""
    backbone = backbone_of(family)
    if backbone.processor.chat_template is None:
        with pytest.raises(ValueError, match="has no chat template, hence no turns"):
            backbone.read_histories(num_queries=3, has_state=True)
        return
    backbone.read_histories(num_queries=3, has_state=True)
    generator = torch.Generator().manual_seed(4)
    images = [torch.rand(3, 3, 3, 40, 40, generator=generator) for _ in range(2)]
    slots = torch.randn(9, 4, backbone.width, generator=generator) * 0.15
    valid = torch.tensor([[True] * 3, [False, False, True], [False, True, True]])
    with torch.no_grad():
        batch = backbone.turns_pass(images, TASKS, slots[valid.flatten()], valid)
        for i, first in enumerate((0, 2, 1)):
            mine = [image[i : i + 1, first:] for image in images]
            own = slots.view(3, 3, 4, -1)[i, first:]
            alone = backbone.turns_pass(mine, TASKS[i : i + 1], own, valid[i : i + 1, first:])
            start = int(valid[:i].sum())
            assert (batch[start : start + len(own)] - alone).abs().max() < 1e-5
            # Causal: what a step says does not depend on the steps behind it.
            earlier = backbone.turns_pass(
                [image[:, :1] for image in mine], TASKS[i : i + 1], own[:1], torch.ones(1, 1).bool()
            )
            assert (alone[:1] - earlier).abs().max() < 1e-5
    assert batch.std() > 0.1
    past, widths = None, []
    handle = backbone.vlm.base_model.register_forward_pre_hook(
        lambda m, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    for steps in (1, 2, 3):
        seen = [image[:, :steps] for image in images], TASKS[1:2] * 3
        own, all_valid = slots.view(3, 3, 4, -1)[:, :steps].flatten(0, 1), torch.ones(3, steps).bool()
        with torch.no_grad():
            whole = backbone.turns_pass(*seen, own, all_valid).view(3, steps, 4, -1)[:, -1]
        continued, past = backbone.turn_step(*seen, own, all_valid, past)
        assert (continued - whole).abs().max() < 1e-5
        assert (past is None) == (family == "gemma3")
        assert (widths[-1] < widths[-2]) == (steps > 1 and family != "gemma3")
    handle.remove()
