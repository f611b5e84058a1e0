"""The command line: help that teaches, errors that say what to do, lines that LeRobot accepts."""

import argparse
import ast
import errno
import importlib
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vita_vla_cli import cli, errors, quickstart, training_line
from vita_vla_cli.recipe import FAST, FULL, Recipe

HEAVY = (
    "torch",
    "lerobot",
    "transformers",
    "mujoco",
    "metaworld",
    "wandb",
    "matplotlib",
    "lerobot_policy_vita_vla",
)


def all_parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Every parser by its name, as in ``vita-vla demos record``."""
    found = {parser.prog: parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                found |= all_parsers(child)
    return found


def commands_in(text: str) -> list[str]:
    """Commands shown in a help text; remarks in brackets are left out."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("vita-vla ")]
    return [line.split("  (")[0] for line in lines]


PARSERS = all_parsers(cli.build_parser())


def test_help_is_quick_and_imports_nothing_heavy():
    script = (
        "import sys; from vita_vla_cli.cli import main\n"
        "try: main(['--help'])\n"
        f"finally: print([m for m in {HEAVY} if m in sys.modules])"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - start)
    assert child.stdout.splitlines()[-1] == "[]"
    assert min(seconds) < 1.5


def test_help_lists_the_verbs_in_the_order_of_the_flow_with_an_example_each():
    text = PARSERS["vita-vla"].format_help()
    order = list(cli.VERBS)
    assert order[:7] == ["doctor", "demos", "teacher", "align", "finetune", "eval", "report"]
    places = [text.index(f"\n    {verb}") for verb in order]
    assert places == sorted(places)
    for verb in order:
        assert any(command.split()[1] == verb for command in commands_in(text)), verb


@pytest.mark.parametrize("name", PARSERS)
def test_examples_of_every_help_are_valid(name):
    commands = commands_in(PARSERS[name].format_help())
    assert commands, f"{name} --help shows no example"
    for command in commands:
        if command.startswith("vita-vla VERB"):
            continue
        args, extra = cli.build_parser().parse_known_args(shlex.split(command)[1:])
        assert hasattr(args, "run"), command
        assert args.takes_lerobot_flags or not extra, command
        training_line.check_extra(extra)


@pytest.mark.parametrize("recipe", [FULL, FAST], ids=["full", "fast"])
def test_steps_of_the_quickstart_are_valid_commands(recipe, tmp_path):
    for step in quickstart.plan(tmp_path, recipe, device="cpu"):
        args, extra = cli.build_parser().parse_known_args(step.argv)
        assert hasattr(args, "run") and (args.takes_lerobot_flags or not extra)


def test_quickstart_compares_only_what_differs_in_alignment(tmp_path):
    steps = {step.name: list(step.argv) for step in quickstart.plan(tmp_path, FULL)}
    two_stage, alone = steps["finetune"], steps["only_finetune"]
    for flag in ("--steps", "--batch-size", "--lr", "--seed"):
        assert two_stage[two_stage.index(flag) + 1] == alone[alone.index(flag) + 1]
    evaluated = [*steps["eval"][1:4], *steps["eval_finetune"][1:2]]
    assert [Path(p).name for p in evaluated] == ["teacher", "align", "only_finetune", "finetune"]


def test_recording_and_evaluation_seeds_do_not_meet():
    for recipe in (Recipe(), FULL, FAST):
        tried = 10 * recipe.episodes_per_task  # far more attempts than any expert needs
        assert recipe.demo_seed + tried <= recipe.eval_seed


# --- errors


def test_user_errors_are_one_block_without_traceback(capsys):
    assert cli.main(["align", "--demos", "/nowhere/demos", "--teacher", "/nowhere/teacher"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and "Traceback" not in shown
    assert "/nowhere/demos" in shown and "vita-vla demos record" in shown


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="/nowhere/demos"):
        cli.main(["teacher", "--demos", "/nowhere/demos", "--debug"])


def test_errors_of_ours_keep_their_traceback(monkeypatch):
    def broken(*args):
        raise KeyError("a bug")

    monkeypatch.setattr("vita_vla_cli.verbs.training.run", broken)
    with pytest.raises(KeyError):
        cli.main(["teacher", "--demos", "x"])


def test_interruption_says_what_is_kept(monkeypatch, capsys, tmp_path):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("vita_vla_cli.verbs.training.run", interrupted)
    run = tmp_path / "teacher"
    assert cli.main(["teacher", "--demos", "x", "--out", str(run)]) == 130
    assert "no checkpoint yet" in capsys.readouterr().err
    config = run / training_line.TRAIN_CONFIG
    config.parent.mkdir(parents=True)
    config.write_text("{}")
    assert cli.main(["teacher", "--demos", "x", "--out", str(run)]) == 130
    assert "--resume" in capsys.readouterr().err


def test_a_kill_says_what_is_kept_as_well(monkeypatch, capsys, tmp_path):
    def killed(*args):
        if (child := os.fork()) == 0:
            signal.raise_signal(signal.SIGTERM)
            os._exit(99)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM, "children are killed as ever"
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    line = ["teacher", "--demos", "x", "--out", str(tmp_path / "teacher")]
    try:
        monkeypatch.setattr("vita_vla_cli.verbs.training.run", killed)
        assert cli.main(line) == 130
        assert "interrupted\nkept: no checkpoint yet" in capsys.readouterr().err
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        monkeypatch.setattr("vita_vla_cli.verbs.training.run", lambda *args: 0)
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(cli.main, line).result() == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_full_disk_names_the_disk_and_what_is_kept(tmp_path):
    error = OSError(
        errno.ENOSPC, "No space left on device", str(tmp_path / "not" / "there" / "model.safetensors")
    )
    message, code = errors.explain(error, kept="finished episodes")
    assert code == 2
    assert str(tmp_path) in message and "GiB free of" in message and "kept: finished episodes" in message


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
        ),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_out_of_memory_names_the_flags(error):
    message, code = errors.explain(error, memory_hint="Smaller: --batch-size")
    assert code == 2 and "out of memory" in message and "--batch-size" in message


def test_offline_hub_error_names_online():
    cause = type("OfflineModeIsEnabled", (ConnectionError,), {})(
        "Cannot reach https://hub: offline mode is enabled"
    )
    error = OSError("cannot find the requested files")
    error.__cause__ = cause
    message, code = errors.explain(error)
    assert code == 2 and "--online" in message


@pytest.mark.parametrize(
    ("path", "reason"),
    [("file/inner", "is a file, not a folder"), ("folder", "it is a folder"), ("gone", "no such file")],
)
def test_errors_of_paths_are_told_in_words(tmp_path, path, reason):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught:
        (tmp_path / path).read_text()
    message, code = errors.explain(caught.value)
    assert code == 2 and f"{tmp_path / path} cannot be used" in message and reason in message
    assert "[Errno" not in message and "another path" in message
    assert errors.explain(OSError("no path: a bug, or a library's trouble")) is None


def test_what_is_kept_is_not_told_where_the_arguments_do_not_say(capsys):
    assert cli.main(["eval", "nowhere", "--tasks", "reach"]) == 2
    assert "POLICY nowhere: no such folder" in capsys.readouterr().err


def test_other_runtime_errors_are_not_swallowed():
    assert errors.explain(RuntimeError("shapes do not match")) is None


@pytest.mark.parametrize("verb", ["teacher", "align"])
@pytest.mark.parametrize("wrong", [["--batchsize", "3"], ["--batchsize"], ["extra"]])
def test_misspelt_training_flags_are_refused(verb, wrong, capsys):
    try:
        code = cli.main([verb, "--demos", "x", "--teacher=y", "--dry-run", *wrong])
    except SystemExit as stop:  # where a verb has parts, a stray word is the parser's to refuse
        code = stop.code
    assert code == 2
    assert "--name=value" in capsys.readouterr().err


def test_misspelt_flags_of_other_verbs_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", "work/first", "--nonsense"])
    assert stop.value.code == 2


@pytest.mark.parametrize("lr", ["0", "-1", "nan", "inf"])
def test_a_learning_rate_is_above_zero(lr, capsys):
    with pytest.raises(SystemExit):
        cli.main(["teacher", "--demos", "x", f"--lr={lr}"])
    assert f"--lr: must be a number above 0, got {lr}" in capsys.readouterr().err


# --- training lines


def dry_run(capsys, *argv: str) -> list[str]:
    assert cli.main([*argv, "--dry-run"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("equivalent: ")]
    words = shlex.split(line.removeprefix("equivalent: "))
    assert words[0] == "lerobot-train"
    return words[1:]


@pytest.fixture
def lerobot_reads(monkeypatch):
    """LeRobot's own reading of a `lerobot-train` argument list."""
    import lerobot.policies  # noqa: F401  (registers LeRobot's own, as lerobot-train does)
    from lerobot.configs import parser
    from lerobot.configs.train import TrainPipelineConfig

    import lerobot_policy_vita_vla  # noqa: F401  (registers the policies, as LeRobot's plugin loader does)

    @parser.wrap()
    def read(cfg: TrainPipelineConfig) -> TrainPipelineConfig:
        cfg.validate()
        return cfg

    def from_words(words: list[str]) -> TrainPipelineConfig:
        monkeypatch.setattr(sys, "argv", ["lerobot-train", *words])
        return read()

    return from_words


@pytest.fixture
def teacher(tmp_path):
    """A teacher's run folder, as far as the student's configuration reads it."""
    folder = tmp_path / "run" / "teacher" / "checkpoints" / "last" / "pretrained_model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"type": "seer", "chunk_size": 3}))
    return tmp_path / "run" / "teacher"


def test_teacher_line_is_lerobots(capsys, lerobot_reads, tmp_path):
    demos = tmp_path / "run" / "demos"
    cfg = lerobot_reads(dry_run(capsys, "teacher", "--demos", str(demos), "--seed", "7", "--steps", "123"))
    assert cfg.policy.type == "seer" and cfg.policy.preset == "tiny"
    assert (cfg.seed, cfg.steps) == (7, 123)
    assert cfg.dataset.root == str(demos) and cfg.output_dir == tmp_path / "run" / "teacher"
    assert not cfg.policy.push_to_hub and not cfg.wandb.enable
    assert cfg.save_freq == 0 and cfg.env_eval_freq == 0 and cfg.num_workers == 0
    assert cfg.policy.lr == FULL.teacher_lr


def test_another_teacher_type_gets_only_flags_it_knows(capsys, lerobot_reads, tmp_path):
    demos = tmp_path / "demos"
    cfg = lerobot_reads(dry_run(capsys, "teacher", "--demos", str(demos), "--policy.type=act"))
    assert cfg.policy.type == "act"


def test_align_line_is_lerobots(capsys, lerobot_reads, teacher):
    demos = teacher.parent / "demos"
    words = dry_run(
        capsys, "align", "--demos", str(demos), "--teacher", str(teacher), "--policy.align_loss=norm"
    )
    cfg = lerobot_reads(words)
    assert cfg.policy.type == "vita_vla" and cfg.policy.stage == "align" and cfg.policy.vlm == "mini"
    assert Path(cfg.policy.teacher_path) == teacher / "checkpoints" / "last" / "pretrained_model"
    assert cfg.policy.align_loss == "norm" and cfg.policy.chunk_size == 3


def test_finetune_line_continues_the_alignment(capsys, lerobot_reads, teacher):
    from lerobot_policy_vita_vla import VitaVLAConfig

    demos, align = teacher.parent / "demos", teacher.parent / "align"
    checkpoint = align / "checkpoints" / "last" / "pretrained_model"
    checkpoint.mkdir(parents=True)
    VitaVLAConfig(stage="align", chunk_size=3, align_loss="norm")._save_pretrained(checkpoint)
    cfg = lerobot_reads(
        dry_run(capsys, "finetune", "--demos", str(demos), "--from", str(align), "--lr", "0.5")
    )
    assert cfg.policy.stage == "finetune" and cfg.policy.align_loss == "norm"
    assert cfg.policy.pretrained_path == checkpoint
    assert cfg.policy.lr == 0.5
    assert cfg.policy.align_weight == FULL.kept_alignment > 0
    assert cfg.output_dir == teacher.parent / "finetune"
    papers = dry_run(
        capsys, "finetune", "--demos", str(demos), "--from", str(align), "--policy.align_weight=0"
    )
    assert lerobot_reads(papers).policy.align_weight == 0


def test_finetune_that_follows_a_teacher_which_is_gone_is_refused(capsys, teacher):
    from lerobot_policy_vita_vla import VitaVLAConfig

    demos, align = teacher.parent / "demos", teacher.parent / "align"
    checkpoint = align / "checkpoints" / "last" / "pretrained_model"
    checkpoint.mkdir(parents=True)
    gone = teacher / "checkpoints" / "last" / "elsewhere"
    config = VitaVLAConfig(stage="align", chunk_size=3)
    config.teacher_path = str(gone)
    config._save_pretrained(checkpoint)
    line = ["finetune", "--demos", str(demos), "--from", str(align), "--dry-run"]
    assert cli.main(line) == 2
    message = capsys.readouterr().err
    assert str(gone) in message and "--teacher RUN" in message and "--policy.align_weight=0" in message
    assert cli.main([*line, "--policy.align_weight=0"]) == 0
    assert cli.main([*line, "--teacher", str(teacher)]) == 0
    config.teacher_path = "someone/their-teacher"  # of the hub
    config._save_pretrained(checkpoint)
    assert cli.main(line) == 0


def test_only_finetune_line_starts_from_the_vlm(capsys, lerobot_reads, teacher):
    demos = teacher.parent / "demos"
    words = dry_run(capsys, "finetune", "--demos", str(demos), "--teacher", str(teacher), "--only-finetune")
    cfg = lerobot_reads(words)
    assert cfg.policy.stage == "only_finetune" and cfg.policy.pretrained_path is None
    assert cfg.policy.align_weight == 0
    assert cfg.output_dir == teacher.parent / "only_finetune"


def test_given_lerobot_flags_win_over_ours(tmp_path):
    words = training_line.compose(
        "teacher",
        demos=tmp_path,
        out=tmp_path / "t",
        steps=1,
        batch_size=1,
        seed=0,
        extra=["--num_workers=4"],
    )
    assert [w for w in words if w.startswith("--num_workers")] == ["--num_workers=4"]


def test_long_runs_save_on_the_way(tmp_path):
    words = training_line.compose("teacher", demos=tmp_path, out=tmp_path, steps=50_000, batch_size=1, seed=0)
    assert f"--save_freq={training_line.SAVE_ONLY_AT_END_BELOW}" in words


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        ([], "--from ALIGN_RUN"),
        (["--only-finetune"], "--teacher"),
        (["--only-finetune", "--from", "x"], "leave --from out"),
    ],
)
def test_contradictory_finetune_flags_are_explained(flags, hint, capsys):
    assert cli.main(["finetune", "--demos", "x", "--dry-run", *flags]) == 2
    assert hint in capsys.readouterr().err


def test_a_folder_that_is_no_training_run_is_never_removed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training_line, "DATASET_PARTS", ())  # an empty dataset will do
    demos = tmp_path / "demos"
    (demos / "meta").mkdir(parents=True)
    (demos / "meta" / "info.json").write_text("{}")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years")
    assert cli.main(["teacher", "--demos", str(demos), "--out", str(precious), "--overwrite"]) == 2
    assert "not a training run" in capsys.readouterr().err
    assert (precious / "thesis.txt").exists()


def test_labels_and_run_folder_come_from_the_paths():
    from vita_vla_cli.verbs import evaluation

    checkpoint = "work/first/align/checkpoints/000300/pretrained_model"
    assert evaluation._labelled("work/first/align") == ("align", "work/first/align")
    assert evaluation._labelled(checkpoint) == ("align", checkpoint)
    assert evaluation._labelled("mine=work/first/align") == ("mine", "work/first/align")
    assert evaluation._labelled("work/first/align/checkpoints/last")[0] == "align"
    assert evaluation._run_folder(Path("work/first/align/checkpoints/last")) == Path("work/first/align")
    assert evaluation._labelled("pretrained_model")[0] == "pretrained_model"


def test_a_folder_of_the_wrong_level_is_told_which_one_is_meant(capsys, tmp_path, teacher):
    def said(*words):
        assert cli.main(list(words)) == 2
        return capsys.readouterr().err

    checkpoint = teacher / "checkpoints" / "last" / "pretrained_model"
    assert f"the run's folder itself, {teacher}\n" in said("eval", str(teacher / "checkpoints"))
    weights = checkpoint / "model.safetensors"
    weights.write_text("")
    assert f"that is a file; pass the folder it lies in, {checkpoint}\n" in said("eval", str(weights))
    demos = tmp_path / "lib" / "demos"
    (demos / "meta").mkdir(parents=True)
    (demos / "meta" / "info.json").write_text("{}")
    assert f"did you mean --demos {demos}?" in said("teacher", "--demos", str(demos.parent))
    (demos / "meta" / "info.json").write_text("{")
    assert f"{demos / 'meta' / 'info.json'} is damaged" in said("teacher", "--demos", str(demos))
    (checkpoint / "config.json").write_text("[]")
    message = said("finetune", "--demos", str(demos), "--from", str(teacher), "--dry-run")
    assert f"{checkpoint / 'config.json'} holds a list" in message


def test_two_policies_with_one_label_are_refused(capsys):
    assert cli.main(["eval", "a/teacher", "b/teacher", "--run", "x"]) == 2
    assert "LABEL=POLICY" in capsys.readouterr().err


def late_imports() -> list[tuple[str, str]]:
    """(module, name) of everything that verbs import from the package when they run."""
    found = []
    for path in sorted((Path(cli.__file__).parent / "verbs").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("lerobot_policy_vita_vla"):
                found += [(node.module, alias.name) for alias in node.names]
    return sorted(set(found))


@pytest.mark.parametrize(("module", "name"), late_imports(), ids=lambda value: value)
def test_what_verbs_import_when_they_run_is_there(module, name):
    # A name may be a module, which its package knows only after somebody's import.
    found = importlib.import_module(module)
    assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}")


def test_registering_the_plugin_imports_no_simulator_and_no_web_stack():
    # What LeRobot's own packages have imported before is not ours to count.
    script = (
        "import sys, lerobot.configs, lerobot.envs, lerobot.policies\n"
        "before = set(sys.modules)\n"
        "import lerobot_policy_vita_vla\n"
        "new = set(sys.modules) - before\n"
        "print(sorted(m for m in new if not m.startswith('lerobot_policy_vita_vla')))"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    new = child.stdout.splitlines()[-1]
    for name in ("mujoco", "metaworld", "wandb", "matplotlib", "transformers.models", "websockets", "OpenGL"):
        assert f"'{name}" not in new, new
