"""Seer's network: who reads whom, published sizes, encoders, pictures."""

from __future__ import annotations

import zlib

import pytest
import torch

from lerobot_policy_vita_vla.contracts import ActionSpec
from lerobot_policy_vita_vla.teacher.seer.batches import observations
from lerobot_policy_vita_vla.teacher.seer.build import build_network
from lerobot_policy_vita_vla.teacher.seer.configuration_seer import SeerConfig
from lerobot_policy_vita_vla.teacher.seer.instruction import HashedInstructionEncoder
from lerobot_policy_vita_vla.teacher.seer.layout import StepLayout
from lerobot_policy_vita_vla.teacher.seer.pictures import augment, patchify, stack_cameras
from teacher_helpers import A, features, make_policy, observation, training_batch

torch.set_num_threads(1)


def unused_in_reference(width: int) -> int:
    """Parameters of the released checkpoints that their own forward pass never uses, hence not built here.

    ``action_pose_encoder``, ``action_gripper_position_encoder``, ``action_projector`` (actions are no input)
    and ``recon_{state,arm_state,gripper_state}_decoder`` (no state is reconstructed).
    """
    half = width // 2

    def linear(inputs, outputs):
        return inputs * outputs + outputs

    return (
        linear(6, width)
        + linear(2, width)
        + linear(2 * width, width)
        + linear(width, half)
        + linear(half, half)
        + linear(half, 6)
        + linear(half, 1)
    )


@pytest.mark.parametrize(
    ("preset", "steps", "trainable", "decoder", "per_step"),
    [
        ("base", 10, 67_689_614, 112_327, 37),
        ("base", 7, 67_688_462, 112_327, 37),
        ("large", 10, 357_767_950, 791_047, 71),
    ],
)
def test_published_sizes(preset, steps, trainable, decoder, per_step):
    cameras = ("observation.images.static", "observation.images.wrist")
    shapes = features(cameras, size=200, state_dim=8, action_dim=7)
    config = SeerConfig(preset=preset, n_obs_steps=steps, device="cpu", gripper_state_dims=[6, 7], **shapes)
    config.validate_features()
    config.action_spec = ActionSpec(tuple("xyzabcg"), (0.0,) * 7, (1.0,) * 7, (6,), "binary").to_dict()
    with torch.device("meta"):
        network = build_network(config, load_pretrained=False)
    ours = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert ours + unused_in_reference(config.width) == trainable
    assert sum(p.numel() for p in network.decoder.parameters()) == decoder
    assert network.layout.per_step == per_step
    assert (
        sum(p.numel() for p in network.trunk.parameters())
        == {384: 42_587_904, 1024: 302_311_424}[config.width]
    )


def test_mask_by_hand():
    # One camera, one image token, one foresight token, one action: text state image cls | foresight | action.
    mask = StepLayout(n_cameras=1, image_tokens=1, foresight_tokens=1, action_tokens=1).attention_mask(2)
    now, own = [1, 1, 1, 1], [0, 0]
    nothing = [0] * 6
    first = [*([[*now, *own, *nothing]] * 4), [*now, 1, 0, *nothing], [*now, 1, 1, *nothing]]
    past = [*now, *own]
    second = [*([[*past, *now, *own]] * 4), [*past, *now, 1, 0], [*past, *now, 1, 1]]
    assert mask.int().tolist() == first + second


@pytest.mark.parametrize("n_steps", [1, 3])
def test_what_a_token_changes(n_steps):
    network = make_policy(n_obs_steps=n_steps, foresight_tokens=4).eval().network
    layout = network.layout
    tokens = torch.randn(1, n_steps, layout.per_step, 32)
    before = network.transform(tokens)
    step = min(1, n_steps - 1)

    def changed(index):
        perturbed = tokens.clone()
        perturbed[0, step, index] += torch.randn(32)
        return (network.transform(perturbed) - before).abs().amax((0, 3)) > 1e-6

    action = range(layout.per_step)[layout.action_slice]
    foresight = range(layout.per_step)[layout.foresight_slice]
    own_step = torch.zeros(n_steps, layout.per_step, dtype=torch.bool)
    own_step[step, layout.action_slice] = True
    assert torch.equal(changed(action[0]), own_step)
    own_step[step, layout.foresight_slice] = True
    assert torch.equal(changed(foresight[0]), own_step)
    # An observed token reaches its own and all later steps, but no earlier one.
    seen = changed(0)
    assert not seen[:step].any() and seen[step].all()
    later = seen[step + 1 :]
    assert later.all()


def test_history_reads_only_the_past():
    policy = make_policy(n_obs_steps=2, cameras=("observation.images.a", "observation.images.b")).eval()
    batch = observation(policy.config, steps=2)
    pictures, state, task = observations(batch, policy.config, 2)
    before = policy.network(pictures, state, task).action_BHTE
    pictures[:, 1] = 0.5
    after = policy.network(pictures, state, task).action_BHTE
    torch.testing.assert_close(after[:, 0], before[:, 0])
    assert (after[:, 1] - before[:, 1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("switch", "key"),
    [("use_images", "observation.image"), ("use_state", "observation.state"), ("use_instruction", "task")],
)
def test_blind_baselines(switch, key):
    other = {"task": ["push the puck", "push the puck"]}
    for enabled in (True, False):
        policy = make_policy(**{switch: enabled}).eval()
        batch = observation(policy.config)
        changed = {**batch, key: other.get(key, observation(policy.config, seed=5).get(key))}
        same = torch.allclose(
            policy.predict_action_chunk(batch), policy.predict_action_chunk(changed), atol=1e-6
        )
        assert same is not enabled


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("told", [True, False])
def test_black_pictures_are_encoded_once_per_instruction(steps, told):
    """With the result, gradients too, of encoding every sample's own black pictures."""
    cameras = ("observation.images.a", "observation.images.b")
    settings = {"n_obs_steps": steps, "cameras": cameras, "use_instruction": told}
    blind, seeing = make_policy(use_images=False, **settings), make_policy(**settings)
    calls = []
    blind.network.image_encoder.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    batch = observation(blind.config, batch_size=5, steps=steps)
    pictures, state, task = observations(batch, blind.config, steps)
    once = blind.network(pictures, state, task).action_BHTE
    each = seeing.network(torch.zeros_like(pictures), state, task).action_BHTE
    assert calls == [2 if told else 1]
    torch.testing.assert_close(once, each)
    for action_features in (once, each):
        weights = torch.linspace(-1, 1, action_features.numel()).view_as(action_features)
        (action_features * weights).sum().backward()
    wanted = dict(seeing.network.named_parameters())
    for name, parameter in blind.network.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, msg=name)


def test_a_step_of_history_gets_its_own_labels():
    policy = make_policy(n_obs_steps=2, chunk_size=3)
    batch = training_batch(policy.config)
    assert batch["action"].shape == (2, 4, A)
    # Actions -1 .. 2: the chunk of the step before now starts one earlier.
    data = policy_batch(policy, batch)
    torch.testing.assert_close(data.action_BHTA[:, 0], batch["action"][:, :3])
    torch.testing.assert_close(data.action_BHTA[:, 1], batch["action"][:, 1:])


def test_steps_before_the_episode_do_not_count():
    policy = make_policy(n_obs_steps=2)
    batch = training_batch(policy.config)
    batch["action_is_pad"][:, 0] = True
    assert policy_batch(policy, batch).action_is_pad_BHT.tolist() == [[[True] * 3, [False] * 3]] * 2


def policy_batch(policy, batch):
    from lerobot_policy_vita_vla.teacher.seer.batches import training_batch as split

    return split(batch, policy.config, augmented=False)


def test_foresight_looks_ahead():
    policy = make_policy(n_obs_steps=2, foresight_weight=0.1, auxiliary_weight=0.0)
    assert policy.config.observation_delta_indices == [-1, 0, 2, 3]
    batch = training_batch(policy.config)
    image = batch["observation.image"]
    data = policy_batch(policy, batch)
    torch.testing.assert_close(data.pictures_BHN3hw[:, :, 0], image[:, :2])
    torch.testing.assert_close(data.future_BHN3hw[:, :, 0], image[:, 2:])
    batch["observation.image_is_pad"] = torch.tensor([[False, False, True, True]] * 2)
    _, padded = policy(batch)
    assert padded["loss_foresight"] == 0.0


def test_patches_are_rows_of_standardised_pixels():
    picture = torch.arange(3 * 4 * 4).float().view(1, 3, 4, 4)
    patches = patchify(picture, 2)
    assert patches.shape == (1, 4, 12)
    expected = picture[0, :, 0:2, 2:4].permute(1, 2, 0).flatten()
    expected = (expected - expected.mean()) / (expected.var() + 1e-6).sqrt()
    torch.testing.assert_close(patches[0, 1], expected)


def test_augmentation_shifts_all_frames_of_a_camera_alike():
    torch.manual_seed(0)
    frame = torch.rand(4, 1, 2, 3, 16, 16)
    shifted = augment(frame.expand(4, 3, 2, 3, 16, 16), shift_px=4, brightness=0.2)
    assert torch.equal(shifted[:, 0], shifted[:, 2])
    assert not torch.equal(shifted[0, 0, 0], frame[0, 0, 0])
    found = [
        (dy, dx)
        for dy in range(-4, 5)
        for dx in range(-4, 5)
        for only_shifted in [augment_exactly(frame[0, 0, 0], dy, dx)]
        if torch.allclose(
            only_shifted / only_shifted.mean(), shifted[0, 0, 0] / shifted[0, 0, 0].mean(), atol=0.1
        )
    ]
    assert len(found) == 1


def augment_exactly(picture, dy, dx):
    padded = torch.nn.functional.pad(picture[None], (4, 4, 4, 4), mode="replicate")[0]
    return padded[:, 4 + dy : 20 + dy, 4 + dx : 20 + dx]


def test_pictures_of_another_size_are_resized():
    images = [torch.full((1, 2, 3, 48, 64), 0.25), torch.full((1, 2, 3, 32, 32), 0.75)]
    stacked = stack_cameras(images, 32)
    assert stacked.shape == (1, 2, 2, 3, 32, 32)
    torch.testing.assert_close(stacked[:, :, 0], torch.full((1, 2, 3, 32, 32), 0.25))


def test_hashed_instructions():
    encoder = HashedInstructionEncoder(n_buckets=1024, dim=8)
    a, b, c, empty = encoder(["put red on blue", "put blue on red", "Put red on blue.", ""])
    torch.testing.assert_close(a, c)
    assert not torch.allclose(a, b), "word order must matter"
    assert empty.abs().max() == 0
    # Known once, known for ever: the rows may not depend on the process, as Python's own hash does.
    assert encoder._buckets("door") == [zlib.crc32(b"0:door") % 1024, zlib.crc32(b"1:door") % 1024]
