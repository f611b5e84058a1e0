"""Converting VITA-1.5: every kind of bad input is one clear error, and no folder is left behind."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lerobot_policy_vita_vla.vlm import vita15_convert
from lerobot_policy_vita_vla.vlm.vita15_convert import convert
from vita15_helpers import VISION, random_weights, write_checkpoint, write_settings, write_shards
from vita_vla_cli import cli

INDEX = "model.safetensors.index.json"
FIRST = "model-00001-of-00003.safetensors"


@pytest.fixture
def source(tmp_path):
    return write_checkpoint(tmp_path / "in" / "source")


def refused(source, tmp_path, match, **options):
    """Convert, expect an error, and that nothing was written."""
    before = sorted(tmp_path.rglob("*"))
    options = {"vision": source.with_name("vision")} | options
    with pytest.raises(ValueError, match=match):
        convert(source, tmp_path / "out", **options)
    assert sorted(tmp_path.rglob("*")) == before


def change(folder, file, edit):
    """Rewrite one shard and the index through ``edit(weights)``."""
    weights = load_file(folder / file)
    names = set(weights)
    edit(weights)
    save_file(weights, folder / file)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if k not in names}
    index["weight_map"] |= dict.fromkeys(weights, file)
    (folder / INDEX).write_text(json.dumps(index))


def holder(folder, name):
    return json.loads((folder / INDEX).read_text())["weight_map"][name]


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, 0.999])
def test_truncated_safetensors_shard(source, tmp_path, keep):
    data = (source / FIRST).read_bytes()
    (source / FIRST).write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    refused(source, tmp_path, rf"{FIRST} is damaged or cut short .*; download it again")


@pytest.mark.parametrize("keep", [0, 200, 0.5, 0.999])
def test_truncated_pickled_shard(tmp_path, keep):
    source = write_checkpoint(tmp_path / "in" / "source", form="bin")
    file = source / "pytorch_model-00002-of-00003.bin"
    data = file.read_bytes()
    file.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    refused(source, tmp_path, rf"{file.name} .*damaged.*download it again")


def test_pickled_shard_that_holds_more_than_weights(tmp_path):
    source = write_checkpoint(tmp_path / "in" / "source", form="bin")
    torch.save({"model.norm.weight": SimpleNamespace()}, source / "pytorch_model-00002-of-00003.bin")
    refused(source, tmp_path, "holds more than weights")
    torch.save({"state_dict": {"a": torch.ones(1)}}, source / "pytorch_model-00002-of-00003.bin")
    refused(source, tmp_path, "not a shard of weights")


def test_missing_shard(source, tmp_path):
    (source / FIRST).unlink()
    refused(source, tmp_path, rf"lacks {FIRST}, which its index names")


def test_missing_weights_or_damaged_index(source, tmp_path):
    (source / INDEX).write_text('{"weight_')
    refused(source, tmp_path, f"{INDEX} is damaged")
    for file in source.glob("model*"):
        file.unlink()
    refused(source, tmp_path, "holds no weights: expected model.safetensors or pytorch_model.bin")


def test_missing_tensor(source, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    change(source, holder(source, name), lambda weights: weights.pop(name))
    refused(source, tmp_path, r"1 missing \(model\.layers\.1\.mlp\.up_proj\.weight\)")


def test_missing_tensor_of_the_image_encoder(source, tmp_path):
    name = "model.vision_tower.vision_tower.encoder.layers.0.attn.qkv.bias"
    change(source, holder(source, name), lambda weights: weights.pop(name))
    refused(source, tmp_path, r"1 missing \(model\.vision_tower\..*attn\.qkv\.bias\)")


def test_wrong_shape(source, tmp_path):
    for name, shape in (("model.mm_projector.0.weight", (48, 64)), ("lm_head.weight", (500, 48))):
        change(
            source,
            holder(source, name),
            lambda weights, name=name, shape=shape: weights.update({name: torch.zeros(shape)}),
        )
    refused(
        source,
        tmp_path,
        r"2 of another shape \(lm_head\.weight \(500, 48\), expected \(512, 48\), model\.mm_projector",
    )


def test_unknown_tensor(source, tmp_path):
    change(source, FIRST, lambda weights: weights.update({"model.extra.weight": torch.zeros(2)}))
    refused(source, tmp_path, r"1 unknown \(model\.extra\.weight\)")


def test_index_and_shards_disagree(source, tmp_path):
    index = json.loads((source / INDEX).read_text())
    name = next(name for name, file in index["weight_map"].items() if file == FIRST)
    index["weight_map"][name] = "model-00002-of-00003.safetensors"
    (source / INDEX).write_text(json.dumps(index))
    refused(source, tmp_path, "do not hold what their index says: 1 tensors differ")


def test_tensor_in_two_shards(source, tmp_path):
    weights = load_file(source / "model-00002-of-00003.safetensors") | load_file(source / FIRST)
    save_file(weights, source / "model-00002-of-00003.safetensors")
    refused(source, tmp_path, "is in both .* shards of two downloads seem mixed")


def test_not_a_number(source, tmp_path):
    def edit(weights):
        weights["model.norm.weight"][3] = float("nan")

    change(source, holder(source, "model.norm.weight"), edit)
    refused(source, tmp_path, r"model\.norm\.weight in .* holds NaN or infinity", max_shard_bytes=50_000)


def test_quantised_weights(source, tmp_path):
    name = "lm_head.weight"
    change(source, holder(source, name), lambda weights: weights.update({name: weights[name].to(torch.int8)}))
    refused(source, tmp_path, "lm_head.weight in .* is stored as I8; quantised weights")


def test_overflow_of_the_chosen_type(source, tmp_path):
    name = "lm_head.weight"
    change(source, holder(source, name), lambda weights: weights.update({name: weights[name] * 1e6}))
    refused(source, tmp_path, r"lm_head\.weight .*infinity \(as float16\)", dtype="float16")


def test_no_image_encoder_anywhere(tmp_path):
    source = tmp_path / "in" / "source"
    # Without a second folder, the settings are those of InternViT-300M.
    write_settings(source, mm_hidden_size=4096)
    write_shards(source, random_weights()[0] | {"model.mm_projector.0.weight": torch.zeros(48, 4096)})
    refused(source, tmp_path, "InternViT-300M-448px and add --vision FOLDER", vision=None)


def test_second_folder_is_not_the_image_encoder(tmp_path):
    source = write_checkpoint(tmp_path / "in" / "source", inside=False)
    vision = source.with_name("vision")
    encoder = random_weights()[1]
    write_shards(vision, {"a": torch.ones(1)}, 1)
    refused(source, tmp_path, r"holds no InternViT: none of its 1 tensors")
    write_shards(vision, encoder | {"head.weight": torch.ones(1)}, 1)
    refused(source, tmp_path, r"tensors in .*vision are not.*1 unknown \(head\.weight\)")
    encoder.pop("encoder.layers.1.ls2")
    write_shards(vision, encoder, 1)
    refused(source, tmp_path, r"1 missing \(encoder\.layers\.1\.ls2\)")
    (vision / "config.json").write_text(json.dumps({"hidden_size": 32}))
    refused(source, tmp_path, "is not InternViT's, it lacks num_hidden_layers")
    (vision / "config.json").write_text(json.dumps(VISION | {"hidden_size": 64}))
    refused(source, tmp_path, "mm_hidden_size=128, but 2 x 2 patches .* width 64 are 256")
    refused(source, tmp_path, "is not a folder", vision=tmp_path / "nothing")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "vita-mixtral"}, "says model_type='vita-mixtral', expected .* not VITA-1.5"),
        ({"mm_projector_type": "spp_v1"}, "says mm_projector_type='spp_v1', expected 'mlp2x_gelu'"),
        ({"tie_word_embeddings": True}, "says tie_word_embeddings=True"),
        ({"use_s2": True}, "says use_s2=True"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "says rope_scaling="),
        ({"mm_vision_select_layer": -2}, "says mm_vision_select_layer=-2"),
        ({"rope_theta": None, "rms_norm_eps": None}, "lacks rms_norm_eps, rope_theta"),
        ({"vocab_size": 100}, "has 36[0-9] tokens, the model's vocabulary 100"),
    ],
)
def test_settings_of_another_model(source, tmp_path, changes, match):
    write_settings(source, **changes)
    refused(source, tmp_path, match)


def test_damaged_settings_and_tokenizer(source, tmp_path):
    tokenizer = (source / "tokenizer_config.json").read_text()
    (source / "tokenizer_config.json").write_text(json.dumps(json.loads(tokenizer) | {"pad_token": None}))
    refused(source, tmp_path, "names no pad_token")
    (source / "tokenizer.json").write_text("{")
    refused(source, tmp_path, "the tokenizer in .* cannot be read")
    (source / "tokenizer.json").unlink()
    refused(source, tmp_path, "the tokenizer in .* cannot be read")
    (source / "config.json").write_text("{")
    refused(source, tmp_path, "config.json is damaged")
    (source / "config.json").unlink()
    refused(source, tmp_path, "config.json does not exist")
    shutil.rmtree(source)
    refused(source, tmp_path, "is not a folder")


def test_image_size_that_does_not_fold(source, tmp_path):
    refused(source, tmp_path, "210 x 210 px give 15 x 15 patches", image_size=210)


def test_destination_is_never_overwritten(source, tmp_path):
    (tmp_path / "out").mkdir()
    refused(source, tmp_path, "out exists; choose another folder")
    (tmp_path / "out").rmdir()
    (tmp_path / ".out.unfinished").mkdir()
    refused(source, tmp_path, r"another conversion is running, or one was killed.*rm -r")


def test_full_disk_is_noticed_before_writing(source, tmp_path, monkeypatch):
    usage = SimpleNamespace(free=100_000)
    monkeypatch.setattr(vita15_convert.shutil, "disk_usage", lambda path: usage)
    refused(source, tmp_path, "0.0 GiB free, the converted weights need")
    with pytest.raises(ValueError, match="GiB free"):
        convert(source, tmp_path / "new" / "out", vision=source.with_name("vision"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("No space left on device")])
def test_interruption_leaves_nothing(source, tmp_path, monkeypatch, error):
    written = []

    def save(tensors, file, **kwargs):
        if written:
            raise error
        written.append(file)
        return save_file(tensors, file, **kwargs)

    monkeypatch.setattr(vita15_convert, "save_file", save)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((KeyboardInterrupt, OSError)):
        convert(source, tmp_path / "out", vision=source.with_name("vision"), max_shard_bytes=100_000)
    assert written and sorted(tmp_path.rglob("*")) == before


def test_command_line(source, tmp_path, capsys):
    arguments = ["vlm", "convert", "vita-1.5", str(source), str(tmp_path / "out")]
    arguments += ["--vision", str(source.with_name("vision")), "--dtype", "bfloat16"]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"model: {tmp_path / 'out'}"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "exists; choose another folder" in error
    assert len(error.splitlines()) == 1
