"""The mini VLM: tokenizer, captions, scenes, losses, recipe, and the weights that ship with the package."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lerobot_policy_vita_vla.vlm import captions, describe, objective, paths
from lerobot_policy_vita_vla.vlm import pretrain as recipe_module
from lerobot_policy_vita_vla.vlm import scenes as scenes_module
from lerobot_policy_vita_vla.vlm.card import model_card
from lerobot_policy_vita_vla.vlm.model import END, IMAGE, MiniVLMSize, build_model, build_processor, chat
from lerobot_policy_vita_vla.vlm.pretrain import Recipe

TASKS = sorted(captions.instructions())
TINY = MiniVLMSize(
    image_size=32, patch_size=8, vision_width=32, vision_layers=1, text_width=32, text_layers=1
)  # 4 image tokens
RESULTS = Path(__file__).parents[1] / "results" / "mini_vlm.json"


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny_processor():
    return build_processor(TINY)


@pytest.fixture(scope="module")
def shipped():
    return describe.load_vlm()


def synthetic_scenes(count: int = 24, size: int = 32) -> scenes_module.Scenes:
    """A bright square on black whose place in the picture is the hand's place in the world."""
    random = np.random.default_rng(0)
    pixels = np.repeat(random.uniform(0.1, 0.8, (count, 1, 2)), 4, axis=1).astype(np.float32)
    images = np.zeros((count, size, size, 3), dtype=np.uint8)
    for image, (column, row) in zip(images, (pixels[:, 0] * size).astype(int), strict=True):
        image[row : row + 4, column : column + 4] = 255
    points = np.concatenate([pixels, np.full((count, 4, 1), 0.1, np.float32)], axis=2) - [0.5, -0.2, 0]
    return scenes_module.Scenes(
        images=images,
        points=points.astype(np.float32),
        pixels=pixels,
        gripper=random.uniform(0, 1, count).astype(np.float32),
        tasks=np.arange(count) % 2,
        seeds=np.arange(count) // 4,
        task_names=["drawer-open-v3", "hammer-v3"],
    )


# Tokenizer and processor


@pytest.mark.parametrize("which", ["built", "shipped"])
def test_every_word_of_the_50_instructions_is_one_token(which, tiny_processor, request):
    processor = tiny_processor if which == "built" else request.getfixturevalue("shipped")[1]
    for text in [*captions.instructions().values(), captions.DESCRIBE]:
        pieces = processor.tokenizer.tokenize(f" {text}")
        words = re.findall(r"\w+|[^\w\s]", text.lower())
        assert [piece.removeprefix("\u0120") for piece in pieces] == words
        ids = processor.tokenizer(f" {text}")["input_ids"]
        assert processor.tokenizer.decode(ids) == f" {text.lower()}"


@pytest.mark.parametrize(
    "text", ["Zebra #7: put the 2nd mug on it!", "caf\u00e9 \u4f60\u597d \U0001f916", "a\tb\n\nc", "1234567"]
)
def test_no_text_is_unknown_to_the_tokenizer(text, tiny_processor):
    tokenizer = tiny_processor.tokenizer
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text.lower()


def test_tokenizer_is_the_same_every_time(tiny_processor):
    assert build_processor(TINY).tokenizer.get_vocab() == tiny_processor.tokenizer.get_vocab()


def test_prompt_has_one_image_token_per_fold_of_patches_and_pads_left(tiny_processor):
    blank = np.zeros((32, 32, 3), dtype=np.uint8)
    texts = [
        chat(tiny_processor, text) for text in ("open a drawer", "pick up a nut and place it onto a peg")
    ]
    inputs = tiny_processor(text=texts, images=[[blank]] * 2, padding=True, return_tensors="pt")
    image_id = tiny_processor.tokenizer.convert_tokens_to_ids(IMAGE)
    assert (inputs["input_ids"] == image_id).sum(1).tolist() == [TINY.image_tokens] * 2
    assert inputs["attention_mask"][0, 0] == 0 and inputs["attention_mask"][:, -1].all()
    alone = objective.prompt_ids(tiny_processor, "open a drawer")
    assert inputs["input_ids"][0, -len(alone) :].equal(alone)


def test_training_sees_the_pixels_that_the_processor_makes(tiny_processor):
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    made = tiny_processor.image_processor([[image] for image in images], return_tensors="pt")["pixel_values"][
        :, 0
    ]
    torch.testing.assert_close(objective.to_pixels(torch.from_numpy(images)), made, atol=1e-6, rtol=0)


# Captions


@pytest.mark.parametrize("task", TASKS)
def test_caption_reads_back_to_half_a_centimetre(task):
    random = np.random.default_rng(len(task))
    for _ in range(20):
        points = random.uniform([-0.5, 0, 0], [0.49, 0.99, 0.5], (4, 3))
        said = captions.parse_caption(captions.caption(task, points, random.uniform()))
        names = captions.scene_names(task)
        assert list(said) == [name for name in names if name is not None]
        for name, point in zip(names, points, strict=True):
            if name is not None:
                np.testing.assert_allclose(said[name], point, atol=0.00501)


def test_captions_are_made_of_whole_word_tokens(tiny_processor):
    random = np.random.default_rng(0)
    for task in TASKS:
        text = captions.caption(task, random.uniform(-0.2, 0.9, (4, 3)), random.uniform())
        pieces = tiny_processor.tokenizer.tokenize(f" {text}")
        words = text.replace(",", " ,").replace(".", " .").split()
        assert [piece.removeprefix("\u0120") for piece in pieces] == words
        assert len(pieces) < describe.MAX_CAPTION_TOKENS


def test_positions_outside_the_words_are_clipped():
    assert captions.to_words([-3.0, 2.0, -1.0]) == (0, 99, 0)


@pytest.mark.parametrize("text", ["", "hand", "hand 1 2", "1 2 3", "no numbers at all, none.", "hand x y z."])
def test_nonsense_parses_to_nothing(text):
    assert captions.parse_caption(text) == {}


def test_unknown_task_is_named():
    with pytest.raises(ValueError, match="'open-sesame'"):
        captions.scene_names("open-sesame")


# Scenes


@pytest.fixture(scope="module")
def rendered():
    return scenes_module.collect(["reach-v3", "drawer-open-v3"], resets=3, frames=2, seed=7)


def test_scenes_repeat_and_do_not_depend_on_the_other_tasks(rendered):
    again = scenes_module.collect(["drawer-open-v3"], resets=3, frames=2, seed=7)
    same = rendered.subset(rendered.tasks == 1)
    for name in ("images", "points", "pixels", "gripper", "seeds"):
        np.testing.assert_array_equal(getattr(again, name), getattr(same, name))
    assert not np.array_equal(again.points[0, 0], again.points[1, 0]), "the hand should move between pictures"


def test_projected_goal_lies_on_the_goal_marker(rendered):
    reach = rendered.subset(rendered.tasks == 0)
    for image, (column, row) in zip(reach.images, reach.pixels[:, 3] * 96, strict=True):
        row, column = int(row), int(column)
        patch = image[row - 2 : row + 3, column - 2 : column + 3].astype(int)
        # reach marks its goal in saturated red; nothing else near it is.
        assert (patch[..., 0] - patch[..., 1:].max(-1)).max() > 60


def test_split_keeps_the_pictures_of_a_reset_together(rendered, tmp_path):
    training, held_out = rendered.split(0.4)
    assert len(training) + len(held_out) == len(rendered) and len(held_out) > 0
    for task in (0, 1):
        sides = [set(part.seeds[part.tasks == task]) for part in (training, held_out)]
        assert sides[0] and sides[1] and not sides[0] & sides[1]
    rendered.save(tmp_path / "scenes.npz")
    np.testing.assert_array_equal(scenes_module.Scenes.load(tmp_path / "scenes.npz").images, rendered.images)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="resets=0"):
        scenes_module.collect(["reach-v3"], resets=0)


# Losses and training


def test_caption_loss_of_a_batch_is_the_token_mean_of_its_rows(tiny_processor):
    torch.manual_seed(0)
    model = build_model(tiny_processor, TINY).eval()
    heads = objective.PositionHeads(TINY.text_width, TINY.image_tokens)
    data = objective.CaptionData(synthetic_scenes(), tiny_processor)

    def captions_loss(rows):
        batch = data.batch(torch.tensor(rows), torch.zeros(len(rows), dtype=torch.bool))
        pixels = objective.to_pixels(batch["images"])
        return objective.losses(model, heads, batch, pixels, data.number_ids).captions, batch["answer"].sum()

    (first, n_first), (second, n_second), (both, n_both) = map(captions_loss, ([0], [1], [0, 1]))
    assert n_first != n_second, "the two tasks' captions should differ in length, or padding is not tested"
    assert n_both == n_first + n_second
    torch.testing.assert_close(both, (first * n_first + second * n_second) / n_both, rtol=1e-5, atol=1e-5)


def test_every_number_token_gets_the_coordinate_that_it_rounds(tiny_processor):
    data = objective.CaptionData(synthetic_scenes(), tiny_processor)
    batch = data.batch(torch.arange(8), torch.arange(8) % 2 == 0)
    said = ~batch["values"].isnan()
    words = [int(tiny_processor.tokenizer.decode([i])) for i in batch["ids"][said]]
    assert len(words) == 4 * 9 + 4 * 12
    np.testing.assert_allclose(words, batch["values"][said], atol=0.501)
    end = tiny_processor.tokenizer.convert_tokens_to_ids(END)
    assert all(
        (ids[answer] == end).sum() == 1 for ids, answer in zip(batch["ids"], batch["answer"], strict=True)
    )


def test_training_lowers_every_loss_and_repeats():
    recipe = Recipe(steps=24, batch_size=16, lr=5e-3)
    runs = []
    for seed in (0, 0, 1):
        history = []
        model, _ = recipe_module.train(
            synthetic_scenes(),
            recipe=recipe,
            size=TINY,
            seed=seed,
            on_step=lambda _, x, h=history: h.append(x),
        )
        runs.append((model.lm_head.weight.detach(), history))
    first, last = runs[0][1][0], runs[0][1][-1]
    assert all(after < 0.9 * before for before, after in zip(first, last, strict=True)), (first, last)
    assert runs[0][0].equal(runs[1][0]) and not runs[0][0].equal(runs[2][0])


def test_learning_rate_rises_then_falls_to_two_percent():
    recipe = Recipe(steps=100)
    rates = [recipe_module.learning_rate(step, recipe) for step in range(100)]
    peak = rates.index(max(rates))
    assert peak in (4, 5) and rates[0] < 0.3 * max(rates) and rates[-1] < 0.03 * recipe.lr


def test_recipe_writes_a_folder_that_the_auto_classes_load(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe_module, "Recipe", lambda: replace(Recipe(), batch_size=4))
    record = recipe_module.pretrain(
        tmp_path / "vlm",
        tasks="reach",
        steps=2,
        resets=2,
        frames=1,
        threads=1,
        scenes_file=tmp_path / "s.npz",
    )
    model, processor = describe.load_vlm(tmp_path / "vlm")
    assert record["sha256"] in (tmp_path / "vlm" / "README.md").read_text()
    assert json.loads((tmp_path / "vlm" / recipe_module.RECORD).read_text()) == json.loads(json.dumps(record))
    assert "--tasks reach" in record["command"] and "--steps 2" in record["command"]
    assert isinstance(describe.describe(np.zeros((96, 96, 3), np.uint8), vlm=(model, processor)), str)
    second = recipe_module.pretrain(
        tmp_path / "vlm2",
        tasks="reach",
        steps=1,
        seed=1,
        threads=1,
        scenes_file=tmp_path / "s.npz",
        start=tmp_path / "vlm",
    )
    assert second["started_from"]["sha256"] == record["sha256"] != second["sha256"]
    card = (tmp_path / "vlm2" / "README.md").read_text()
    assert record["command"] in card and second["command"] in card
    with pytest.raises(ValueError, match="delete it or name another"):
        recipe_module.pretrain(tmp_path / "vlm", tasks="push", steps=1, scenes_file=tmp_path / "s.npz")


# The shipped weights


def test_missing_weights_are_named_with_the_command_that_makes_them(tmp_path):
    with pytest.raises(ValueError, match=r"model\.safetensors.*vita-vla vlm pretrain"):
        paths.check_vlm_folder(tmp_path)


def test_shipped_folder_is_small_and_matches_its_card():
    folder = paths.mini_vlm_path()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10e6
    record = json.loads((folder / recipe_module.RECORD).read_text())
    assert record["sha256"] == recipe_module.sha256(folder / "model.safetensors")
    assert record["sha256"] in (folder / "README.md").read_text()
    assert json.loads(RESULTS.read_text()) == record
    assert record["tasks"] == TASKS
    # The recipe in the code is the recipe of the weights, and the card is what the code writes of the record.
    assert record["recipe"] == asdict(Recipe())
    assert (folder / "README.md").read_text() == model_card(record)


def test_shipped_vlm_is_a_small_smolvlm_without_our_code(shipped):
    model, processor = shipped
    assert type(model).__name__ == "SmolVLMForConditionalGeneration"
    assert type(processor).__name__ == "SmolVLMProcessor"
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 5e6
    assert not processor.image_processor.do_image_splitting


def test_shipped_vlm_says_where_things_are_in_new_scenes(shipped):
    tasks = ["button-press-topdown-v3", "drawer-open-v3", "plate-slide-v3"]
    scenes = scenes_module.collect(tasks, resets=4, frames=2, seed=12345)
    errors = describe.position_errors(scenes, vlm=shipped)
    assert errors["unreadable"] == 0
    # About twice the held-out means of the model card: 24 pictures are few.
    assert errors["points"]["hand"]["mae_cm"] < 3
    assert errors["points"]["object"]["mae_cm"] < 3
    assert errors["points"]["goal"]["mae_cm"] < 3


def test_shipped_vlm_looks_at_the_picture(shipped, rendered):
    answers = describe.say(list(rendered.images), ["describe the scene"] * len(rendered), vlm=shipped)
    drawers = ["drawer handle" in answer for answer in answers]
    assert drawers == (rendered.tasks == 1).tolist()


def test_blind_speaker_errs_by_the_spread_of_the_scenes():
    scenes = synthetic_scenes()
    blind = describe.constant_errors(scenes, scenes)["tasks"]["drawer-open-v3"]
    points = scenes.points[scenes.tasks == 0][:, 3]
    expected = 100 * np.abs(points - np.median(points, axis=0)).mean()
    assert blind["goal"]["mae_cm"] == pytest.approx(expected, abs=1e-3)
    assert "second" not in blind
