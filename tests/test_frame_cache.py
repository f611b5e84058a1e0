"""The frame cache yields what LeRobot's own reader yields, in the same order."""

import tracemalloc

import numpy as np
import pytest
import torch
from lerobot.datasets import LeRobotDataset
from torch.utils.data import DataLoader, default_collate

from lerobot_policy_vita_vla.training.frame_cache import (
    CachedDataset,
    FrameCacheAccelerator,
    cache_refusal,
)

FPS = 10


def record(root, dtype: str, episodes: int = 3) -> None:
    features = {
        "observation.images.front": {
            "dtype": dtype,
            "shape": (32, 48, 3),
            "names": ["height", "width", "channels"],
        },
        "observation.state": {"dtype": "float32", "shape": (4,), "names": ["a", "b", "c", "d"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["x", "gripper"]},
        "next.done": {"dtype": "bool", "shape": (1,), "names": None},
    }
    dataset = LeRobotDataset.create("local/cache", FPS, features, root=root, use_videos=dtype == "video")
    rng = np.random.default_rng(0)
    for episode in range(episodes):
        base = rng.integers(0, 200, (4, 6, 3), dtype=np.uint8)
        for step in range(5 + episode):
            dataset.add_frame(
                {
                    "observation.images.front": np.kron(base + step, np.ones((8, 8, 1), dtype=np.uint8)),
                    "observation.state": rng.normal(size=4).astype(np.float32),
                    "action": rng.normal(size=2).astype(np.float32),
                    "next.done": np.array([step == 4 + episode]),
                    "task": ["push the cube", "open the door"][episode % 2],
                }
            )
        dataset.save_episode()
    dataset.finalize()


@pytest.fixture(scope="module", params=["image", "video"])
def root(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("cache") / request.param
    record(root, request.param)
    return root


def load(root, **kwargs) -> LeRobotDataset:
    kwargs.setdefault(
        "delta_timestamps",
        {"action": [i / FPS for i in range(3)], "observation.images.front": [-1 / FPS, 0.0]},
    )
    return LeRobotDataset("local/cache", root=root, return_uint8=True, video_backend="pyav", **kwargs)


def as_trained(batch: dict) -> dict:
    return {
        k: v.float() / 255 if torch.is_tensor(v) and v.dtype == torch.uint8 else v for k, v in batch.items()
    }


def assert_same(ours: dict, theirs: dict) -> None:
    ours, theirs = as_trained(ours), as_trained(theirs)
    assert ours.keys() == theirs.keys()
    for key, want in theirs.items():
        if torch.is_tensor(want):
            assert ours[key].dtype == want.dtype, key
            torch.testing.assert_close(ours[key], want, rtol=0, atol=1e-7, msg=key)
        else:
            assert ours[key] == want, key


@pytest.mark.parametrize("episodes", [None, [0, 2]])
def test_batches_equal_lerobots(root, episodes):
    dataset = load(root, episodes=episodes)
    cached = CachedDataset(dataset)
    assert len(cached) == len(dataset)
    indices = [0, len(dataset) - 1, 4, 5, 6, 2]  # first, last and both sides of an episode's border
    assert_same(cached.__getitems__(indices), default_collate([dataset[i] for i in indices]))


def test_no_history_no_chunk(root):
    dataset = load(root, delta_timestamps=None)
    assert_same(CachedDataset(dataset).__getitems__([1, 3]), default_collate([dataset[i] for i in (1, 3)]))


def test_the_accelerator_keeps_order_and_batch_size(root):
    dataset = load(root)
    order = [7, 1, 12, 3, 0]
    loader = DataLoader(dataset, batch_size=2, sampler=order)
    prepared = FrameCacheAccelerator(limit_gib=1.0, cpu=True).prepare(loader)
    batches = list(prepared)
    assert [len(b["index"]) for b in batches] == [2, 2, 1]
    assert torch.cat([b["index"] for b in batches]).tolist() == order
    for ours, theirs in zip(batches, loader, strict=True):
        assert_same(ours, theirs)


def test_too_large_or_transformed_datasets_keep_lerobots_loader(root):
    dataset = load(root)
    assert "GiB" in cache_refusal(dataset, limit_gib=1e-9)
    assert cache_refusal(dataset, limit_gib=1.0) is None
    dataset.image_transforms = lambda x: x
    assert "transforms" in cache_refusal(dataset, limit_gib=1.0)
    loader = DataLoader(dataset, batch_size=2)
    prepared = FrameCacheAccelerator(limit_gib=1.0, cpu=True).prepare(loader)
    assert prepared.dataset is dataset


def test_reading_pictures_takes_little_more_memory_than_they_do(tmp_path):
    size, count = 256, 40
    feature = {"dtype": "image", "shape": (size, size, 3), "names": ["height", "width", "channels"]}
    dataset = LeRobotDataset.create(
        "local/cache", FPS, {"observation.image": feature}, root=tmp_path / "large", use_videos=False
    )
    for shade in range(count):
        picture = np.full((size, size, 3), shade, dtype=np.uint8)
        dataset.add_frame({"observation.image": picture, "task": "push"})
    dataset.save_episode()
    dataset.finalize()
    dataset = LeRobotDataset("local/cache", root=tmp_path / "large", return_uint8=True)
    pictures = count * size * size * 3
    tracemalloc.start()
    column = CachedDataset(dataset).columns["observation.image"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert column[:, 0, 0, 0].tolist() == list(range(count))
    assert pictures < peak < 1.5 * pictures
