"""The whole way through LeRobot's own command lines, on a real recording, and what goes wrong on it.

    recording -> lerobot-train seer -> vita_vla align -> finetune -> resumed
                                           `-> lerobot-eval, lerobot-rollout, vita-vla eval, report

Budgets are a few steps: what is tested is that everything fits together, not that it learns.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from demos_helpers import TASKS, tiny_recording
from end_to_end_helpers import (
    ACTION,
    CAMERA,
    SMALL,
    STATE,
    ImaginaryArm,
    checkpoint,
    dataset_flags,
    lerobot,
    moved_away,
    noise_dataset,
)
from evaluation_helpers import comparable
from lerobot_policy_vita_vla.contracts import PRIVILEGED_STATE, check_loss
from lerobot_policy_vita_vla.conventions import statistics_hash
from lerobot_policy_vita_vla.demos.metaworld import GRIPPER_CLOSED, GRIPPER_OPEN
from lerobot_policy_vita_vla.evaluation.results import read_episodes
from lerobot_policy_vita_vla.teacher.load import load_teacher
from lerobot_policy_vita_vla.training.launch import run_training
from vita_vla_cli import cli, training_line

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def quiet_logging():
    """LeRobot's command lines leave handlers on streams that end with the test, and every level shown."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    for handler in [h for h in root.handlers if type(h) is logging.StreamHandler]:
        root.removeHandler(handler)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder that holds the recording."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(tiny_recording()[0], folder / "demos")
    return folder


@pytest.fixture(scope="module")
def teacher(run):
    output = lerobot(
        "lerobot-train",
        "--policy.type=seer",
        "--policy.preset=tiny",
        *dataset_flags(run / "demos"),
        f"--output_dir={run / 'teacher'}",
        "--steps=3",
        *SMALL,
    )
    assert "Traceback" not in output
    return run / "teacher"


@pytest.fixture(scope="module")
def align(run, teacher):
    lerobot(
        "lerobot-train",
        "--policy.type=vita_vla",
        "--policy.stage=align",
        "--policy.vlm=mini",
        "--policy.dtype=float32",
        f"--policy.teacher_path={checkpoint(teacher)}",
        *dataset_flags(run / "demos"),
        f"--output_dir={run / 'align'}",
        "--steps=2",
        *SMALL,
    )
    return run / "align"


@pytest.fixture(scope="module")
def finetune(run, teacher, align):
    """Four steps at once; then, from the checkpoint in the middle, the last two again.

    Without augmentation: LeRobot's loader draws from the global generator once more when it starts again, so
    that a resumed run shifts pictures otherwise than one that was not interrupted.
    """
    out = run / "finetune"
    with moved_away(teacher):
        lerobot(
            "lerobot-train",
            f"--policy.path={checkpoint(align)}",
            "--policy.stage=finetune",
            "--policy.ema_decay=0.9",
            *dataset_flags(run / "demos"),
            f"--output_dir={out}",
            "--steps=4",
            "--save_freq=2",
            *SMALL,
        )
        # What a crash before the last checkpoint would have left.
        (out / "checkpoints" / "000004").rename(run / "straight")
        (out / "checkpoints" / "last").unlink()
        config = checkpoint(out, "000002") / "train_config.json"
        lerobot("lerobot-train", f"--config_path={config}", "--resume=true")
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


# --- training


def test_a_resumed_run_ends_exactly_like_one_that_was_not_interrupted(run, finetune):
    straight, resumed = weights(run / "straight" / "pretrained_model"), weights(checkpoint(finetune))
    assert straight.keys() == resumed.keys()
    assert [key for key in straight if not torch.equal(straight[key], resumed[key])] == []
    middle = weights(checkpoint(finetune, "000002"))
    assert not all(torch.equal(straight[key], middle[key]) for key in straight)


def test_stages_train_what_they_say(align, finetune):
    before, after = weights(checkpoint(align)), weights(checkpoint(finetune, "000002"))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert any(".decoder." in key for key in changed) and any(".mapper." in key for key in changed)
    vlm = {key for key in changed if ".backbone.vlm." in key}
    assert vlm and not any("vision" in key for key in vlm)
    assert config_of(checkpoint(align))["vlm_changed"] is False
    assert config_of(checkpoint(finetune))["vlm_changed"] is True


def test_a_student_takes_the_teachers_decoder_and_no_other_weight_of_it(teacher, align):
    def prints(state):
        varied = {
            key: value for key, value in state.items() if value.numel() > 64 and value.float().std() > 0
        }
        return {key: hashlib.sha256(value.numpy().tobytes()).hexdigest() for key, value in varied.items()}

    master = load_teacher(teacher)
    student = weights(checkpoint(align))
    for name, value in master.decoder.state_dict().items():
        torch.testing.assert_close(student[f"network.decoder.{name}"], value, rtol=0, atol=0)
    everything_else = {k: v for k, v in prints(weights(checkpoint(teacher))).items() if "decoder" not in k}
    assert len(everything_else) > 10
    assert not set(everything_else.values()) & set(prints(student).values())


def test_what_the_data_said_travels_to_the_last_checkpoint(run, finetune):
    recording = json.loads((run / "demos" / "meta" / "vita_vla.json").read_text())
    saved = config_of(checkpoint(finetune))
    assert saved["recording"] == recording
    assert saved["teacher_cameras"] == {CAMERA: CAMERA} and saved["chunk_size"] == 3
    assert saved["gripper_state_dims"] == [3]
    assert saved["decoder"]["spec"]["gripper_kind"] == "binary", (
        "the recording's gripper only opens and closes"
    )


# --- acting, through LeRobot


@pytest.mark.parametrize("policy", ["teacher", "finetune"])
def test_lerobot_eval_plays_an_episode(policy, run, teacher, finetune, tmp_path):
    flags = (
        f"--policy.path={checkpoint(run / policy)}",
        "--policy.device=cpu",
        "--env.type=vita_metaworld",
        "--env.task=reach-v3",
        "--env.observation_size=32",
        "--env.episode_length=6",
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
        f"--output_dir={tmp_path}",
    )
    if policy == "teacher":
        lerobot("lerobot-eval", *flags)
    else:
        with moved_away(teacher), moved_away(run / "demos"):
            lerobot("lerobot-eval", *flags)
    info = json.loads((tmp_path / "eval_info.json").read_text())
    assert {"per_task", "per_group", "overall"} <= set(info)
    assert info["overall"]["n_episodes"] == 1 and 0 <= info["overall"]["pc_success"] <= 100
    assert [task["task_group"] for task in info["per_task"]] == ["reach-v3"]
    assert list((tmp_path / "videos").rglob("*.mp4"))


def test_lerobots_own_environment_takes_the_student(finetune):
    from lerobot.configs import PreTrainedConfig
    from lerobot.envs.factory import make_env, make_env_config, make_env_pre_post_processors
    from lerobot.policies.factory import make_policy, make_pre_post_processors
    from lerobot.scripts.lerobot_eval import rollout

    from lerobot_policy_vita_vla.demos.gl import ensure_gl

    ensure_gl()
    folder = checkpoint(finetune)
    config = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path = folder
    config.allow_other_size = True  # it draws 480 px, and the student has seen fewer: refused otherwise
    environment = make_env_config("metaworld", task="push-v3")
    policy = make_policy(config, env_cfg=environment).eval()
    processors = make_pre_post_processors(config, pretrained_path=str(folder))
    around = make_env_pre_post_processors(environment, policy_cfg=config)
    env = make_env(environment, n_envs=1)["push-v3"][0]
    env.envs[0].unwrapped._max_episode_steps = 2  # of 500, each drawn at 480 px with all effects
    try:
        played = rollout(env, policy, *around, *processors, seeds=[1], return_observations=True)
    finally:
        env.close()
    assert played[ACTION].shape == (1, 2, 4) and played[ACTION].isfinite().all()
    assert played["observation"][CAMERA].shape[-2:] == (480, 480)


def test_lerobot_rollout_drives_a_robot_whose_camera_has_another_name(finetune, monkeypatch):
    from lerobot.scripts import lerobot_rollout

    handlers = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    ImaginaryArm.received.clear()
    rename = json.dumps({"observation.images.front": CAMERA})
    words = (
        f"--policy.path={checkpoint(finetune)}",
        "--robot.type=imaginary_arm",
        f"--rename_map={rename}",
        "--task=reach the red ball",
        "--fps=20",
        "--duration=0.4",
        "--device=cpu",
        "--return_to_initial_position=false",
        "--play_sounds=false",
    )
    monkeypatch.setattr(sys, "argv", ["lerobot-rollout", *words])
    try:
        lerobot_rollout.rollout()
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
    assert ImaginaryArm.received, "no action reached the robot"
    for action in ImaginaryArm.received:
        assert set(action) == set(ImaginaryArm.axes)
        assert np.isfinite(list(action.values())).all()
        assert action["gripper.pos"] in np.float32([GRIPPER_OPEN, GRIPPER_CLOSED])


# --- ACT as the teacher


def test_act_trained_by_lerobot_teaches_a_student(run, capsys, tmp_path):
    act, student = tmp_path / "act", tmp_path / "align"
    small = (
        "dim_model=32",
        "n_heads=4",
        "dim_feedforward=64",
        "n_encoder_layers=1",
        "n_vae_encoder_layers=1",
    )
    flags = [f"--policy.{flag}" for flag in (*small, "chunk_size=3", "n_action_steps=3")]
    flags += ["--policy.pretrained_backbone_weights=null"]
    demos = ("--demos", str(run / "demos"), "--steps", "2", "--batch-size", "4", "--device", "cpu")
    assert cli.main(["teacher", *demos, "--out", str(act), "--policy.type=act", *flags]) == 0
    # The simulator's own state is no input, though the recording has it and ACT by itself reads everything.
    assert set(config_of(checkpoint(act))["input_features"]) == {CAMERA, STATE}

    words = training_line.compose(
        "align",
        demos=run / "demos",
        out=student,
        steps=2,
        batch_size=4,
        seed=1,
        vlm="mini",
        teacher=str(act),
        device="cpu",
        dtype="float32",
    )
    assert run_training(words) == student
    saved = weights(checkpoint(student))
    head = {
        k.removeprefix("model.action_head."): v
        for k, v in weights(checkpoint(act)).items()
        if "action_head" in k
    }
    assert set(head) == {"weight", "bias"}
    for name, value in head.items():
        torch.testing.assert_close(saved[f"network.decoder.head.{name}"], value, rtol=0, atol=0)
    spec = config_of(checkpoint(student))["decoder"]["spec"]
    stats = json.loads((run / "demos" / "meta" / "stats.json").read_text())[ACTION]
    np.testing.assert_allclose(spec["offset"], stats["mean"], rtol=1e-5)
    np.testing.assert_allclose(spec["scale"], stats["std"], rtol=1e-5)


# --- evaluation and report


def test_evaluation_agreement_and_report_of_a_run(run, align, finetune, tmp_path):
    from lerobot_policy_vita_vla.evaluation.runner import evaluate

    episodes = ("--tasks", TASKS, "--episodes", "1", "--episode-length", "20")
    two = ("--workers", "2", "--device", "cpu")
    assert cli.main(["eval", str(finetune), *episodes, *two]) == 0
    evaluate(
        checkpoint(finetune),
        run / "manifest.json",
        tmp_path,
        label="finetune",
        workers=1,
        device="cpu",
        videos_per_task=(0, 0),
        progress=False,
    )
    assert comparable(read_episodes(run / "eval" / "finetune")) == comparable(read_episodes(tmp_path))

    against = ("--agreement", str(run / "teacher"), "--demos", str(run / "demos"))
    assert cli.main(["eval", str(align), str(finetune), *against]) == 0
    report = json.loads((run / "agreement.json").read_text())
    assert set(report) == {"align", "finetune"}
    assert np.shape(report["align"]["mae"]) == (3, 4) and report["align"]["features"] is not None

    assert cli.main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Agreement with the teacher" in page
    for label in ("align", "finetune"):
        assert label in page


# --- what goes wrong


def refusal(capsys, *words: str, code: int = 2) -> str:
    """The block that a user reads when a command is refused."""
    capsys.readouterr()
    assert cli.main(list(words)) == code
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    return shown[shown.rindex("error: ") :] if code == 2 else shown


def train_words(verb: str, demos: Path, out: Path, *flags: str) -> list[str]:
    size = ("--steps", "2", "--batch-size", "4", "--device", "cpu")
    return [verb, "--demos", str(demos), "--out", str(out), *size, *flags]


@pytest.fixture
def demos(run, tmp_path):
    """A copy of the recording that may be damaged."""
    return Path(shutil.copytree(run / "demos", tmp_path / "demos"))


def test_parts_of_a_dataset_that_are_missing_are_named(capsys, demos, tmp_path):
    shutil.rmtree(demos / "data")
    said = refusal(capsys, *train_words("teacher", demos, tmp_path / "out"))
    assert "data/*/*.parquet missing" in said and f"vita-vla demos check {demos}" in said
    shutil.rmtree(demos)
    demos.with_name("demos.recording").mkdir()
    said = refusal(capsys, *train_words("teacher", demos, tmp_path / "out"))
    assert "has not finished" in said and "continues it" in said
    assert not (tmp_path / "out").exists()


def test_a_file_that_was_cut_off_is_named(capsys, demos, tmp_path):
    (file,) = (demos / "data").glob("*/*.parquet")
    file.write_bytes(file.read_bytes()[:1000])
    said = refusal(capsys, *train_words("teacher", demos, tmp_path / "out"))
    assert f"{file} is cut off" in said and f"vita-vla demos check {demos}" in said


def test_an_output_that_cannot_be_written_is_refused_before_training(capsys, run, tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "teacher"
    said = refusal(capsys, *train_words("teacher", run / "demos", out))
    assert f"--out {out}: nothing can be written" in said and f"{tmp_path / 'file'} is a file" in said


def test_a_dataset_that_contradicts_itself(capsys, demos, tmp_path):
    info, stats = demos / "meta" / "info.json", demos / "meta" / "stats.json"
    whole = info.read_text()
    info.write_text(json.dumps(json.loads(whole) | {"fps": 10}))
    said = refusal(capsys, *train_words("teacher", demos, tmp_path / "out"))
    assert "says 10 frames" in said and "says 80 actions" in said and "demos replay" in said
    info.write_text(whole)
    numbers = json.loads(stats.read_text())
    numbers[ACTION]["max"][0] = 3.0
    stats.write_text(json.dumps(numbers))
    assert cli.main(train_words("teacher", demos, tmp_path / "out")) == 0
    assert f"{stats} is not the one that was recorded" in "".join(capsys.readouterr())
    # A student's dataset is compared with what the teacher was trained on, not with what was recorded.
    kept = config_of(checkpoint(tmp_path / "out"))["recording"]["statistics_hash"]
    assert kept == statistics_hash(numbers)


def test_nan_in_the_state_stops_the_training_and_is_named(capsys, demos, teacher, tmp_path):
    (file,) = (demos / "data").glob("*/*.parquet")
    table = pq.read_table(file)
    poisoned = [[float("nan"), *row[1:]] for row in table[STATE].to_pylist()]
    place = table.column_names.index(STATE)
    column = pa.array(poisoned, type=table.schema.field(STATE).type)
    pq.write_table(table.set_column(place, table.schema.field(STATE), column), file)
    said = refusal(capsys, *train_words("align", demos, tmp_path / "out", "--teacher", str(teacher)))
    assert "['observation.state']" in said and "vita-vla demos check" in said


def test_a_loss_that_is_not_finite_blames_data_or_learning_rate():
    good, bad = torch.zeros(2), torch.tensor([0.0, float("inf")])
    check_loss(good.mean(), {"a": bad})
    with pytest.raises(ValueError, match=r"values of \['a'\] that are NaN or infinite"):
        check_loss(bad.mean(), {"a": bad, "b": good, "task": ["x"]})
    with pytest.raises(ValueError, match="Lower the learning rate"):
        check_loss(bad.mean(), {"b": good})


def test_a_teacher_of_other_data_is_refused(capsys, demos, teacher, align, tmp_path):
    wider = noise_dataset(tmp_path / "wider", actions=5)
    said = refusal(capsys, *train_words("align", wider, tmp_path / "out", "--teacher", str(teacher)))
    assert "it acts with 4 numbers, the data has 5" in said and "Train the teacher on this dataset" in said

    stats = json.loads((demos / "meta" / "stats.json").read_text())
    stats[ACTION]["max"][0] = 3.0
    (demos / "meta" / "stats.json").write_text(json.dumps(stats))
    said = refusal(capsys, *train_words("align", demos, tmp_path / "out", "--teacher", str(teacher)))
    assert str(teacher) in said and "action 'x'" in said
    said = refusal(capsys, *train_words("finetune", demos, tmp_path / "out", "--from", str(align)))
    assert "scale actions differently" in said and "action 'x'" in said


def test_cameras_are_settled_as_the_message_says(capsys, teacher, tmp_path):
    """The flag in the message is what the command then takes."""
    cameras = ("observation.images.left", "observation.images.right")
    demos = noise_dataset(tmp_path / "demos", cameras=cameras)
    words = train_words("align", demos, tmp_path / "align", "--teacher", str(teacher))
    said = refusal(capsys, *words)
    assert all(name in said for name in (CAMERA, *cameras)), said
    flag = re.search(r"(--policy\.teacher_cameras)='(\{.*?\})'", said)
    settled = f"{flag[1]}={flag[2]}"
    assert "must name one of the data's cameras" in refusal(capsys, *words, settled.replace("left", "middle"))
    assert cli.main([*words, settled]) == 0
    assert config_of(checkpoint(tmp_path / "align"))["teacher_cameras"] == {CAMERA: cameras[0]}


def test_what_cannot_teach_is_refused(capsys, run, teacher, align, tmp_path):
    def refused(path) -> str:
        return refusal(capsys, *train_words("align", run / "demos", tmp_path / "out", "--teacher", str(path)))

    assert "vita-vla teacher --demos" in refused(tmp_path / "nowhere")
    diffusion = tmp_path / "diffusion"
    diffusion.mkdir()
    (diffusion / "config.json").write_text(json.dumps({"type": "diffusion", "horizon": 16}))
    assert "'diffusion'" in (said := refused(diffusion)) and "['act', 'seer']" in said
    assert "'vita_vla', which cannot teach" in refused(align)
    assert "that is a dataset, not a trained policy" in refused(run / "demos")
    damaged = Path(shutil.copytree(checkpoint(teacher), tmp_path / "damaged"))
    with (damaged / "model.safetensors").open("r+b") as file:
        file.truncate(5_000)
    assert f"{damaged / 'model.safetensors'} is damaged" in refused(damaged)
    (damaged / "config.json").write_text("{")
    assert f"{damaged / 'config.json'} is damaged" in refused(damaged)
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_setting_that_cannot_work_says_why(capsys, caplog, run, teacher, tmp_path):
    """LeRobot's parser by itself says only that the configuration could not be made."""
    words = train_words("teacher", run / "demos", tmp_path / "out", "--policy.n_action_steps=9")
    said = refusal(capsys, *words)
    assert "n_action_steps" in said and "9" in said and "Couldn't instantiate" not in said
    assert "n_action_steps" in caplog.text, "what plain lerobot-train shows"
    with pytest.raises(SystemExit) as stop:
        cli.main(train_words("teacher", run / "demos", tmp_path / "out", "--policy.nonsense=1"))
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith("unrecognized arguments: --policy.nonsense=1\n")
    words = train_words("align", run / "demos", tmp_path / "out", "--teacher", str(teacher))
    said = refusal(capsys, *words, "--policy.align_loss=l1")
    assert "--policy.align_loss must be one of ('mse', 'norm'), got 'l1'" in said
    assert not (tmp_path / "out").exists()


def test_a_teacher_with_history_is_refused(capsys, run, tmp_path):
    words = train_words("teacher", run / "demos", tmp_path / "teacher", "--policy.n_obs_steps=2")
    assert cli.main(words) == 0
    teacher = ("--teacher", str(tmp_path / "teacher"))
    said = refusal(capsys, *train_words("align", run / "demos", tmp_path / "out", *teacher))
    assert "history of 2 steps" in said and "--policy.n_obs_steps=1" in said


def test_finetune_without_an_alignment_is_refused(capsys, run, teacher, tmp_path):
    words = train_words("finetune", run / "demos", tmp_path / "out", "--from", str(teacher))
    said = refusal(capsys, *words)
    assert "--from" in said and "seer" in said and "vita-vla align" in said


def test_an_incomplete_vlm_is_refused(capsys, run, teacher, tmp_path):
    from lerobot_policy_vita_vla.vlm.paths import mini_vlm_path

    vlm = Path(shutil.copytree(mini_vlm_path(), tmp_path / "vlm"))
    (vlm / "tokenizer.json").unlink()
    given = ("--teacher", str(teacher), "--vlm", str(vlm))
    said = refusal(capsys, *train_words("align", run / "demos", tmp_path / "out", *given))
    assert str(vlm) in said and "tokenizer.json" in said


def test_an_unknown_task_and_a_folder_in_use_are_refused(capsys, run, teacher, tmp_path):
    said = refusal(capsys, "eval", str(teacher), "--run", str(tmp_path), "--tasks", "dor-open")
    assert "dor-open" in said and "door-open-v3" in said
    before = weights(checkpoint(teacher))
    said = refusal(capsys, *train_words("teacher", run / "demos", teacher))
    assert "--resume" in said and "--overwrite" in said
    with pytest.raises(FileExistsError, match="--resume=true --config_path="):
        run_training([f"--output_dir={teacher}"])
    assert weights(checkpoint(teacher)).keys() == before.keys()


def test_running_out_of_memory_names_the_flags(capsys, run, tmp_path, monkeypatch):
    def forward(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

    monkeypatch.setattr("lerobot_policy_vita_vla.teacher.seer.modeling_seer.SeerPolicy.forward", forward)
    said = refusal(capsys, *train_words("teacher", run / "demos", tmp_path / "out"))
    assert "out of memory" in said and "--batch-size" in said and "no checkpoint yet" in said


def test_a_disk_that_is_full_while_weights_are_written(capsys, run, tmp_path, monkeypatch):
    def save(model, filename, **kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("lerobot.policies.pretrained.save_model_as_safetensor", save)
    said = refusal(capsys, *train_words("teacher", run / "demos", tmp_path / "out"))
    assert "is full" in said and "GiB free of" in said and "--out" in said


def test_an_interrupted_training_goes_on_as_the_message_says(capsys, run, tmp_path, monkeypatch):
    updates = []

    def update(policy):
        updates.append(policy)
        if len(updates) == 3:
            raise KeyboardInterrupt

    words = train_words("teacher", run / "demos", tmp_path / "out", "--save_freq=2")
    words[words.index("--steps") + 1] = "4"
    with monkeypatch.context() as patch:
        patch.setattr("lerobot_policy_vita_vla.teacher.seer.modeling_seer.SeerPolicy.update", update)
        said = refusal(capsys, *words, code=130)
    assert "interrupted" in said and "--resume continues it" in said
    assert sorted(p.name for p in (tmp_path / "out" / "checkpoints").iterdir()) == ["000002", "last"]
    resume = ("teacher", "--demos", str(run / "demos"), "--out", str(tmp_path / "out"), "--steps", "4")
    assert cli.main([*resume, "--resume"]) == 0
    assert checkpoint(tmp_path / "out", "000004").is_dir()
    steps = [json.loads(line)["step"] for line in (tmp_path / "out" / "train_log.jsonl").open()]
    assert steps == [1, 2, 3, 4]
    capsys.readouterr()
    assert cli.main([*resume, "--resume"]) == 0
    assert f"nothing to do: {tmp_path / 'out'} is at step 4 already" in capsys.readouterr().out
    resume = (*resume[:-1], "3")
    assert "pass more than 4" in refusal(capsys, *resume, "--resume")
    first, second = (tmp_path / "out" / "command.txt").read_text().splitlines()
    assert "--policy.type=seer" in first and "--resume=true" in second


def test_a_resumed_run_finds_its_dataset_where_it_was_moved_and_takes_no_other(capsys, run, tmp_path):
    first, moved, other = tmp_path / "first", tmp_path / "moved", tmp_path / "other"
    for folder in (first, other):
        shutil.copytree(run / "demos", folder)
    words = train_words("teacher", first, tmp_path / "out")
    words[words.index("--steps") + 1] = "1"
    assert cli.main(words) == 0
    resume = ("teacher", "--out", str(tmp_path / "out"), "--resume", "--steps", "2", "--demos")
    said = refusal(capsys, *resume, str(other))
    assert f"--demos {other}" in said and f"was trained on {first}" in said
    first.rename(moved)
    stats = json.loads((other / "meta" / "stats.json").read_text())
    stats[STATE]["max"][0] += 1
    (other / "meta" / "stats.json").write_text(json.dumps(stats))
    said = refusal(capsys, *resume, str(other))
    assert str(first) in said and "which is gone" in said
    assert cli.main([*resume, str(moved)]) == 0
    assert checkpoint(tmp_path / "out", "000002").is_dir()


def test_the_commandlines_name_of_the_simulators_state_is_the_packages():
    assert training_line.PRIVILEGED_STATE == PRIVILEGED_STATE
