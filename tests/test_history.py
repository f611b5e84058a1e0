"""Histories: one chat turn per step, each supervised; prompts grow; keys and values are kept where exact."""

import json
from pathlib import Path

import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from transformers import GotOcr2ImageProcessor
from transformers.convert_slow_tokenizer import bytes_to_unicode

import teacher_helpers
from lerobot_policy_vita_vla.chunking import ObservationHistory
from lerobot_policy_vita_vla.evaluation.agreement import _ask
from lerobot_policy_vita_vla.vla.backbone import VLMBackbone
from lerobot_policy_vita_vla.vla.modeling_vita_vla import VitaVLAPolicy
from lerobot_policy_vita_vla.vla.presets import preset_values
from lerobot_policy_vita_vla.vla.prompts import PromptEncoder
from lerobot_policy_vita_vla.vla.turns import TurnEncoder
from lerobot_policy_vita_vla.vlm.vita15_model import CHAT_TEMPLATE, IMAGE_TOKEN, VitaVLProcessor
from student_helpers import (
    CAMERA,
    PX,
    STATS,
    TASKS,
    TEACHER_CAMERA,
    A,
    FakeTeacher,
    S,
    T,
    install_loader,
    make_config,
    same_actions,
    save_teacher,
)
from tiny_vlms import build, save, tokenizer

H = 3


@pytest.fixture
def paths(tmp_path, monkeypatch):
    install_loader(monkeypatch)
    return save_teacher(tmp_path / "teacher"), save("smolvlm", tmp_path / "vlm"), tmp_path / "checkpoint"


def student(paths, **settings):
    torch.manual_seed(0)
    settings = {"n_obs_steps": H} | settings
    return VitaVLAPolicy(make_config(*paths[:2], **settings), dataset_stats=STATS)


def history_batch(steps=(3, 1, 2), seed=0, task=None):
    """What LeRobot delivers: H frames, the ones before the start repeated; T actions behind each of them."""
    generator = torch.Generator().manual_seed(seed)
    size = len(steps)
    images = torch.rand(size, H, 3, PX, PX, generator=generator)
    state = torch.randn(size, H, S, generator=generator)
    is_pad = torch.zeros(size, H, dtype=torch.bool)
    for row, count in enumerate(steps):
        is_pad[row, : H - count] = True
        images[row, : H - count] = images[row, H - count]
        state[row, : H - count] = state[row, H - count]
    action = torch.rand(size, H + T - 1, A, generator=generator) * 2 - 1
    action[..., 3] = action[..., 3].sign()
    action_is_pad = torch.zeros(size, H + T - 1, dtype=torch.bool)
    action_is_pad[:, :H] = is_pad
    return {
        CAMERA: images,
        f"{CAMERA}_is_pad": is_pad,
        "observation.state": state,
        "observation.state_is_pad": is_pad,
        "task": [task] * size if task else [TASKS[i % len(TASKS)] for i in range(size)],
        "action": action,
        "action_is_pad": action_is_pad,
    }


def row(batch, i, first=0):
    """One sample without its padded steps, as a batch of its own."""
    out = {}
    for key, value in batch.items():
        if key == "task":
            out[key] = [value[i]]
        elif key.startswith("observation"):
            out[key] = value[i : i + 1, first:]
        else:
            out[key] = value[i : i + 1]
    return out


def at(batch, step):
    """One step's observation, without a frame axis."""
    return {k: v[:, step] for k, v in batch.items() if k in (CAMERA, "observation.state")} | {
        "task": batch["task"]
    }


def test_deltas_ask_for_the_history_and_a_chunk_behind_every_step(paths):
    config = make_config(*paths[:2], n_obs_steps=3)
    assert config.observation_delta_indices == [-2, -1, 0]
    assert config.action_delta_indices == [-2, -1, 0, 1, 2]
    single = make_config(*paths[:2])
    assert single.n_obs_steps == 1 and single.observation_delta_indices is None
    assert single.action_delta_indices == [0, 1, 2]


def test_padded_steps_and_padded_samples_change_nothing(paths):
    policy, batch = student(paths).eval(), history_batch()
    chunks = policy.chunk_of_history(batch)
    assert chunks.shape == (3, T, A)
    for i, count in enumerate((3, 1, 2)):
        alone = policy.chunk_of_history(row(batch, i, H - count))
        torch.testing.assert_close(chunks[i : i + 1], alone, atol=1e-5, rtol=0)
    changed = {k: v.clone() if torch.is_tensor(v) else v for k, v in batch.items()}
    changed[CAMERA][1, : H - 1] = 0.0
    changed["observation.state"][1, : H - 1] = 9.0
    assert torch.equal(policy.chunk_of_history(changed), chunks)


def test_agreement_asks_with_the_history_that_an_episode_has(paths):
    policy, batch = student(paths).eval(), history_batch()

    class Wide(FakeTeacher):  # reads the last step, as a teacher without history does
        def targets(self, batch):
            return super().targets({k: v[:, -1] if torch.is_tensor(v) else v for k, v in batch.items()})

    def same(value):
        return value

    answers = _ask(Wide(), policy, same, same, iter([batch]), "cpu")
    for i, count in enumerate((3, 1, 2)):
        alone = policy.chunk_of_history(row(batch, i, H - count))
        torch.testing.assert_close(torch.from_numpy(answers.student[i]), alone[0], atol=1e-5, rtol=0)


def test_every_step_is_supervised_with_its_own_chunk(paths):
    policy, batch = student(paths, stage="only_finetune"), history_batch()
    seen = []
    policy.network.decoder.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    loss, _ = policy(batch)
    assert seen[0].shape[0] == 6  # 3 + 1 + 2 steps
    loss.backward()
    # Causal: a step's features are those of a history that ends there.
    with torch.no_grad():
        features = policy.network.step_features(
            [batch[CAMERA][:1, :2]],
            batch["task"][:1],
            batch["observation.state"][:1, :2],
            torch.ones(1, 2).bool(),
        )
    torch.testing.assert_close(seen[0][:2], features, atol=1e-5, rtol=0)
    per_sample, _ = policy(batch, reduction="none")
    assert per_sample.shape == (3,)
    weights = torch.tensor([3.0, 1.0, 2.0])
    # Every valid action weighs alike in the mean; here each step has all of its T.
    torch.testing.assert_close((per_sample * weights).sum() / 6, loss, atol=1e-5, rtol=1e-4)
    # The label of step h is the chunk behind h: a change of the window's first action moves step 1 only.
    changed = batch | {"action": batch["action"].clone()}
    changed["action"][0, 0, :3] = -changed["action"][0, 0, :3]
    moved, _ = policy(changed, reduction="none")
    assert moved[0] != per_sample[0] and torch.equal(moved[1:], per_sample[1:])
    # Actions before the episode's start do not count.
    changed["action"] = batch["action"].clone()
    changed["action"][1, : H - 1] = 0.7
    assert torch.equal(policy(changed, reduction="none")[0], per_sample)


def test_align_matches_the_teacher_step_by_step(paths):
    policy, batch = student(paths), history_batch()
    valid = ~batch["observation.state_is_pad"]
    targets = policy._teacher.targets(batch, policy.config.teacher_cameras, valid)
    teacher, n = FakeTeacher(), 0
    with torch.no_grad():
        for i in range(3):
            for h in range(H):
                if valid[i, h]:
                    one = {TEACHER_CAMERA: batch[CAMERA][i : i + 1, h]}
                    one["observation.state"] = batch["observation.state"][i : i + 1, h]
                    torch.testing.assert_close(targets[n : n + 1], teacher.targets(one).features_BTE)
                    n += 1
    assert n == len(targets) == 6
    loss, metrics = policy.train()(batch)
    loss.backward()
    assert metrics["feature_r2"] < 1
    for part in ("state_encoder", "queries", "mapper"):
        assert all(p.grad.abs().sum() > 0 for p in policy.network.parts()[part].values())
    assert all(p.grad is None for p in policy.network.parts()["language"].values())


def test_align_learns_on_histories(paths):
    policy = student(paths, lr=5e-3)
    optimizer = torch.optim.AdamW(policy.get_optim_params())
    losses = []
    for _ in range(30):
        loss, _ = policy.train()(history_batch())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_seer_teaches_every_step_of_its_own_history(tmp_path):
    """The real teacher with a history as long as the student's: one target per step, none for padding."""
    seer = teacher_helpers.make_policy(chunk_size=T, n_action_steps=T, n_obs_steps=H).eval()
    seer.save_pretrained(tmp_path / "seer")
    vlm = save("smolvlm", tmp_path / "vlm")
    # The teacher reads a camera of this name.
    batch = {k.replace(CAMERA, TEACHER_CAMERA): v for k, v in history_batch().items()}
    config = make_config(tmp_path / "seer", vlm, n_obs_steps=H)
    config.input_features[TEACHER_CAMERA] = config.input_features.pop(CAMERA)
    policy = VitaVLAPolicy(config, dataset_stats=STATS)
    valid = ~batch["observation.state_is_pad"]
    targets = policy._teacher.targets(batch, policy.config.teacher_cameras, valid)
    assert targets.shape[:2] == (6, T)
    torch.testing.assert_close(targets, seer.features_of_every_step(batch)[valid])
    loss, _ = policy.train()(batch)
    loss.backward()
    assert policy.network.queries.vectors.grad.abs().sum() > 0


def test_a_teacher_with_another_history_is_refused(paths, monkeypatch):
    install_loader(monkeypatch, lambda teacher: setattr(teacher, "n_obs_steps", 5))
    with pytest.raises(ValueError, match="history of 5 steps.*student 3 steps.*--policy.n_obs_steps=5"):
        student(paths)
    with pytest.raises(ValueError, match="features of its last step only"):
        student(paths, n_obs_steps=5)


def test_memory_grows_then_slides_and_equals_a_history_given_at_once(paths):
    """Growing 1..H with keys and values, and recomputed when the oldest step has left."""
    policy = student(paths).eval()
    generator = torch.Generator().manual_seed(7)
    frames = torch.rand(2, 5, 3, PX, PX, generator=generator)
    states = torch.randn(2, 5, S, generator=generator)
    memory, calls = None, []
    base = policy.network.backbone.vlm.base_model
    base.register_forward_pre_hook(
        lambda m, args, kwargs: calls.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    for step in range(5):
        batch = {CAMERA: frames[:, step], "observation.state": states[:, step], "task": [TASKS[1]] * 2}
        calls.clear()
        chunk, memory = policy.step(batch, memory)
        new = calls[0]
        first = max(0, step + 1 - H)
        window = {
            CAMERA: frames[:, first : step + 1],
            "observation.state": states[:, first : step + 1],
            "task": batch["task"],
        }
        calls.clear()
        torch.testing.assert_close(chunk, policy.chunk_of_history(window), atol=1e-5, rtol=0)
        assert torch.equal(policy.predict_action_chunk(batch), chunk)
        # One turn while the window grows, all of it once the oldest step leaves.
        assert (new < calls[0]) == (0 < step < H), (step, new, calls)
        assert (memory.past is None) == (step + 1 >= H)


def test_a_memory_serves_once_and_one_batch(paths):
    policy = student(paths).eval()
    batch = history_batch((3, 3), task=TASKS[0])
    _, memory = policy.step(at(batch, 0))
    policy.step(at(batch, 1), memory)
    with pytest.raises(ValueError, match="this past has served already"):
        policy.step(at(batch, 1), memory)
    with pytest.raises(ValueError, match="memory is of 2 episodes, the batch has 3"):
        policy.step(at(history_batch(), 1), memory)


def test_samples_with_instructions_of_other_lengths_are_computed_anew_and_agree(paths):
    policy = student(paths).eval()
    batch = history_batch((3, 3, 3))
    memory = None
    for step in range(H):
        chunk, memory = policy.step(at(batch, step), memory)
    torch.testing.assert_close(chunk, policy.chunk_of_history(batch), atol=1e-5, rtol=0)
    # A changed instruction changes all turns.
    memory = None
    for step in range(H - 1):
        _, memory = policy.step(at(history_batch((3, 3), task=TASKS[0]), step), memory)
    other = history_batch((3, 3), task=TASKS[1])
    chunk, _ = policy.step(at(other, H - 1), memory)
    torch.testing.assert_close(chunk, policy.chunk_of_history(other), atol=1e-5, rtol=0)


def test_steps_that_are_not_acted_on_belong_to_the_history(paths):
    policy = student(paths, n_action_steps=2).eval()
    batch = history_batch((3, 3), task=TASKS[0])
    actions = [policy.select_action(at(batch, step)) for step in range(H)]
    first = {
        k: v[:, :1] if k in (CAMERA, "observation.state") else v
        for k, v in batch.items()
        if "_is_pad" not in k
    }
    assert torch.equal(actions[1], policy.chunk_of_history(first)[:, 1])
    torch.testing.assert_close(actions[2], policy.chunk_of_history(batch)[:, 0], atol=1e-5, rtol=0)
    policy.reset()
    assert torch.equal(policy.select_action(at(batch, 0)), actions[0])


def test_the_evaluations_own_history_equals_the_policys(paths):
    policy = student(paths).eval()
    batch = history_batch((3, 3), task=TASKS[0])
    history = ObservationHistory(n_obs_steps=H, keys=(CAMERA, "observation.state"))
    memory = None
    for step in range(H):
        seen = history.push(at(batch, step))
        chunk, memory = policy.step(at(batch, step), memory)
        assert (~seen["observation.state_is_pad"]).sum(dim=1).tolist() == [step + 1] * 2
        torch.testing.assert_close(policy.chunk_of_history(seen), chunk, atol=1e-5, rtol=0)


def test_checkpoint_of_a_history_acts_alike_and_goes_on(paths):
    policy = student(paths, preset="paper-libero", n_obs_steps=None, gripper_state_dims=[3])
    assert policy.config.n_obs_steps == 7
    policy.save_pretrained(paths[2])
    batch = history_batch()
    chunk = policy.chunk_of_history(batch)
    assert same_actions(VitaVLAPolicy.from_pretrained(paths[2]).chunk_of_history(batch), chunk)
    config = PreTrainedConfig.from_pretrained(paths[2], cli_overrides=["--stage=finetune"])
    tuned = VitaVLAPolicy.from_pretrained(paths[2], config=config)
    assert same_actions(tuned.chunk_of_history(batch), chunk)
    config = PreTrainedConfig.from_pretrained(paths[2], cli_overrides=["--preset=paper-calvin"])
    with pytest.raises(ValueError, match="--policy.preset=paper-calvin differs"):
        VitaVLAPolicy.from_pretrained(paths[2], config=config)


def test_a_history_longer_than_the_model_reads_is_refused(tmp_path):
    vlm, processor = build("smolvlm", text={"max_position_embeddings": 60})
    backbone = VLMBackbone(vlm, processor)
    backbone.read_histories(num_queries=T, has_state=True)
    images = [torch.rand(1, 2, 3, PX, PX)]
    slots = torch.zeros(2, T + 1, backbone.width)
    with pytest.raises(
        ValueError, match=r"the prompt has \d+ tokens \(2 images.*reads at most 60.*n_obs_steps"
    ):
        backbone.turns_pass(images, TASKS[:1], slots, torch.ones(1, 2).bool())
    with pytest.raises(ValueError, match="reads at most 60"):
        backbone([torch.rand(1, 3, PX, PX)] * 4, [TASKS[0] * 3], slots[:1])


def test_a_template_that_drops_turns_or_a_missing_one_is_refused():
    vlm, processor = build("smolvlm")
    processor.chat_template = processor.chat_template.replace("for m in messages", "for m in messages[-2:]")
    backbone = VLMBackbone(vlm, processor)
    backbone.read_histories(num_queries=T, has_state=True)
    with pytest.raises(ValueError, match="made 4 places of the 8.*drops or repeats turns"):
        backbone.turns_pass(
            [torch.rand(1, 2, 3, PX, PX)],
            TASKS[:1],
            torch.zeros(2, 4, backbone.width),
            torch.ones(1, 2).bool(),
        )
    paligemma = VLMBackbone(*build("paligemma"))
    with pytest.raises(ValueError, match="no chat template, hence no turns.*n_obs_steps=1"):
        paligemma.read_histories(num_queries=T, has_state=True)
    with pytest.raises(ValueError, match="no place for a system prompt"):
        VLMBackbone(*build("paligemma"), system_prompt="You are a robot.")


def test_too_long_a_history_in_the_batch_is_refused(paths):
    policy = student(paths, n_obs_steps=2)
    with pytest.raises(ValueError, match="histories of 3 steps, the student reads n_obs_steps=2"):
        policy.chunk_of_history(history_batch())


GOLDEN = Path(__file__).parent / "golden" / "paper_prompt_s7.json"


def paper_prompt(golden, preset):
    """The paper preset's prompt by our encoder, in the golden file's ids: bytes, and one number per image."""
    # As many tokens as bytes and specials: nothing is merged.
    words = tokenizer(
        ["<|im_start|>", IMAGE_TOKEN], pad="<|endoftext|>", eos="<|im_end|>", vocab_size=256 + 4
    )
    pictures = GotOcr2ImageProcessor(size={"height": 200, "width": 200})
    processor = VitaVLProcessor(pictures, words, chat_template=CHAT_TEMPLATE)
    prompts = PromptEncoder(
        processor,
        template=preset["prompt"],
        accepts=frozenset({"input_ids", "attention_mask", "pixel_values"}),
        positions=lambda inputs: torch.arange(inputs["input_ids"].shape[1]).unsqueeze(0),
        suffix_values={},
        system_prompt=preset["system_prompt"],
    )
    turns = TurnEncoder(prompts, num_queries=3, has_state=True, separator=preset["query_separator"])
    steps = preset["n_obs_steps"]
    images = [torch.rand(1, steps, 3, 128, 128) for _ in range(2)]
    prompt = turns.encode(images, [golden["instruction"]], torch.ones(1, steps).bool())
    assert prompt.pixels["pixel_values"].shape == (2 * steps, 3, 200, 200)
    slots = {column: -400 for step in prompt.columns.tolist() for column in step[1:]}
    slots |= dict.fromkeys(prompt.columns[:, 0].tolist(), -401)
    alphabet = {char: byte for byte, char in bytes_to_unicode().items()}
    out, run = [], 0
    for column, token in enumerate(words.convert_ids_to_tokens(prompt.tokens["input_ids"][0].tolist())):
        run = run + 1 if token == IMAGE_TOKEN else 0
        if column in slots:
            out.append(slots[column])
        elif run:
            out += [-200] if run == 1 else []
            assert run <= golden["tokens_per_image"]
        else:
            out.append(golden["specials"].get(token, alphabet.get(token)))
    image_tokens = (prompt.tokens["input_ids"] == processor.image_token_id).sum()
    assert image_tokens == steps * 2 * golden["tokens_per_image"]
    return out


def test_seven_steps_are_the_papers_prompt_token_for_token():
    golden = json.loads(GOLDEN.read_text())
    preset = preset_values("paper-libero", "paper")
    assert preset["n_obs_steps"] == golden["steps"] and preset["system_prompt"] == golden["system"]
    assert paper_prompt(golden, preset) == golden["ids"]
    assert len(golden["ids"]) > 7 * 40
