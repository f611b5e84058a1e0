"""Documentation that a machine can check: commands, flags, paths, symbols, generated parts, plain text."""

import argparse
import ast
import dataclasses
import importlib.util
import json
import re
import shlex
import typing
from pathlib import Path

import pytest

from vita_vla_cli import cli, quickstart, training_line
from vita_vla_cli.recipe import FULL
from vita_vla_cli.verbs import bench
from vita_vla_cli.verbs import quickstart as quickstart_verb

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "lerobot_policy_vita_vla"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.name for page in PAGES]

_spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "scripts" / "readme_tables.py")
readme_tables = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(readme_tables)


def blocks(text: str) -> list[str]:
    """Contents of fenced code blocks."""
    return re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def inline(text: str) -> list[str]:
    """Inline code outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def commands(program: str) -> list[tuple[str, list[str]]]:
    """Every command line of a program in the documentation, as (where, arguments)."""
    found = []
    for page in PAGES:
        text = page.read_text()
        lines = [line for block in blocks(text) for line in re.sub(r"\\\n\s*", "", block).splitlines()]
        for line in [*lines, *inline(text)]:
            if re.match(rf"{program}\s+\S", line) and "..." not in line:
                found.append((page.name, shlex.split(line, comments=True)[1:]))
    return found


def names_only_a_verb(parser: argparse.ArgumentParser, words: list[str]) -> bool:
    """Whether the words are verbs alone, as in "the verb `vita-vla demos record`"."""
    for word in words:
        action = next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
        if action is None or word not in action.choices:
            return False
        parser = action.choices[word]
    return True


# --- command lines


def test_every_verb_is_shown():
    shown = {arguments[0] for _, arguments in commands("vita-vla")}
    assert set(cli.VERBS) - {"vlm"} <= shown


def test_command_lines_of_ours_parse():
    parser = cli.build_parser()
    lines = commands("vita-vla")
    assert len(lines) > 20
    for page, arguments in lines:
        if "--help" in arguments or names_only_a_verb(parser, arguments):
            continue
        try:
            args, extra = parser.parse_known_args(arguments)
        except SystemExit:
            pytest.fail(f"{page}: vita-vla {shlex.join(arguments)}")
        assert hasattr(args, "run"), (page, arguments)
        if arguments[0] == "bench":
            extra = unknown_to_benchmarks(args.names, extra)
            assert not extra, (page, extra)
        assert args.takes_lerobot_flags or not extra, (page, extra)
        training_line.check_extra(extra)


def unknown_to_benchmarks(names: list[str], flags: list[str]) -> list[str]:
    """What none of the named benchmarks declares."""
    for name in names:
        flags = bench._own_parser(name).parse_known_args(flags)[1]
    return flags


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {arguments[0] for _, arguments in commands("make")}
    assert {"quickstart", "test"} <= named <= targets


def field_type(config: type, name: str) -> typing.Any:
    """Type of a configuration's field; KeyError if it has none of this name."""
    names = {field.name for field in dataclasses.fields(config)}
    if name not in names:
        raise KeyError(name)
    hint = typing.get_type_hints(config)[name]
    options = [option for option in typing.get_args(hint) if dataclasses.is_dataclass(option)]
    return options[0] if options else hint


def policy_type(arguments: list[str]) -> str:
    given = dict(a.removeprefix("--").split("=", 1) for a in arguments if "=" in a)
    return given.get("policy.type", "vita_vla")  # a path in these pages is a student's


@pytest.fixture(scope="module")
def lerobot():
    """LeRobot's configurations by program, and its registries."""
    from lerobot.configs.eval import EvalPipelineConfig
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.configs.train import TrainPipelineConfig
    from lerobot.envs.configs import EnvConfig
    from lerobot.policies.act.configuration_act import ACTConfig  # noqa: F401  (registers itself)

    import lerobot_policy_vita_vla  # noqa: F401

    programs = {"lerobot-train": TrainPipelineConfig, "lerobot-eval": EvalPipelineConfig}
    return programs, PreTrainedConfig, EnvConfig


def check_flag(lerobot, program: str, flag: str, arguments: list[str]) -> None:
    """KeyError unless the flag is a field, through nested configurations."""
    programs, policies, envs = lerobot
    head, _, rest = flag.partition(".")
    config = programs[program]
    if head == "policy" and rest in ("path", "type"):
        return
    if head == "policy":
        config, rest = policies.get_choice_class(policy_type(arguments)), rest or head
    elif head == "env" and rest:
        if rest == "type":
            return
        kind = next(a.split("=", 1)[1] for a in arguments if a.startswith("--env.type="))
        config = envs.get_choice_class(kind)
    else:
        rest = flag
    for part in rest.split("."):
        config = field_type(config, part)


def test_a_flag_that_does_not_exist_is_found(lerobot):
    for flag in ("policy.learning_rate", "stepz", "env.nothing", "dataset.rootz", "eval.n"):
        with pytest.raises(KeyError):
            check_flag(lerobot, "lerobot-train", flag, ["--policy.type=seer", "--env.type=vita_metaworld"])


@pytest.mark.parametrize("program", ["lerobot-train", "lerobot-eval"])
def test_flags_of_lerobot_lines_exist(lerobot, program):
    lines = commands(program)
    assert lines
    for page, arguments in lines:
        for argument in arguments:
            assert argument.startswith("--") and "=" in argument, (page, argument)
            name = argument.removeprefix("--").split("=", 1)[0]
            try:
                check_flag(lerobot, program, name, arguments)
            except KeyError:
                pytest.fail(f"{page}: {program} has no --{name}")


def test_lerobot_flags_passed_through_our_verbs_exist(lerobot):
    parser = cli.build_parser()
    for page, arguments in commands("vita-vla"):
        if "--help" in arguments or arguments[0] == "bench" or names_only_a_verb(parser, arguments):
            continue
        args, extra = parser.parse_known_args(arguments)
        kind = "seer" if arguments[0] == "teacher" else "vita_vla"
        for flag in extra:
            name = flag.removeprefix("--").split("=", 1)[0]
            given = [f"--policy.type={policy_type(extra) if '--policy.type' in str(extra) else kind}"]
            try:
                check_flag(lerobot, "lerobot-train", name, given)
            except KeyError:
                pytest.fail(f"{page}: {kind} has no --{name}")


def test_policy_flags_in_prose_are_fields(lerobot):
    known = {
        f.name
        for kind in ("vita_vla", "seer", "act")
        for f in dataclasses.fields(lerobot[1].get_choice_class(kind))
    }
    for page in PAGES:
        for name in re.findall(r"--policy\.(\w+)", page.read_text()):
            assert name in known | {"path", "type"}, f"{page.name}: --policy.{name}"


def test_rollout_line_has_fields_of_lerobots():
    # Importing lerobot.rollout starts robot drivers, so its configuration is read, not imported.
    source = Path(importlib.util.find_spec("lerobot").origin).parent / "rollout" / "configs.py"
    rollout = next(n for n in ast.parse(source.read_text()).body if getattr(n, "name", "") == "RolloutConfig")
    names = {n.target.id for n in rollout.body if isinstance(n, ast.AnnAssign)}
    lines = commands("lerobot-rollout")
    assert lines
    for page, arguments in lines:
        for argument in arguments:
            name = argument.removeprefix("--").split("=", 1)[0]
            assert name.split(".")[0] in names, f"{page}: lerobot-rollout has no --{name}"


# --- what the pages promise


def test_shown_output_of_the_quickstart_is_what_it_prints(tmp_path):
    readme = PAGES[0].read_text()
    steps = quickstart.plan(Path("work/quickstart"), FULL)
    for number, step in enumerate(steps, 1):
        if number in (1, 2, len(steps)):
            assert f"[{number}/{len(steps)}] {step.name}\n" in readme
    rate = {"success_rate": 0.5, "low": 0.4, "high": 0.6, "n_episodes": 9}
    labels = ("teacher", "align", "only_finetune", "finetune")
    for label in labels:
        folder = tmp_path / "eval" / label
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({"label": label, "overall": rate}))
    header, *rows = quickstart_verb.table(tmp_path).splitlines()
    assert f"\n{header}\n" in readme
    assert [row.split()[0] for row in rows] == list(labels)
    places = [readme.index(f"\n{row[:14]} ...") for row in rows]
    assert places == sorted(places)


def source_strings() -> str:
    """All string constants of the source, implicit concatenations joined, values of f-strings left out."""
    parts = [(ROOT / "scripts" / "setup.sh").read_text()]
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts.append("".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values))
    return "\n".join(parts)


# Headings that describe what is seen and are no message of this package.
DESCRIPTIONS = {
    "invalid choice: 'vita_vla' (from LeRobot)",
    "Every command takes half a minute to start",
    "Rendering is slow",
    "torchcodec tracebacks at the start of training",
    "out of memory",
    "Success falls at the first updates of finetune",
    "Low loss, but the robot does nonsense",
    "The rate differs from lerobot-eval's",
}


def test_messages_in_troubleshooting_are_still_printed():
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    headings = re.findall(r"^### (.*)$", text, flags=re.MULTILINE)
    strings = source_strings()
    assert set(headings) >= DESCRIPTIONS
    for heading in headings:
        if heading not in DESCRIPTIONS:
            printed = heading.replace("observation.environment_state", "{}")
            assert printed in strings, f"no message of the source contains {printed!r}"


# --- names


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_named_files_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    if page.name == "file_map.md":
        return  # compared with the files as a whole
    for code in inline(text):
        name = code.split(":")[0]
        if re.fullmatch(r"[\w./]*\w\.(py|md|sh|toml)", name):
            assert any((base / name).is_file() for base in (ROOT, PACKAGE)), f"{page.name}: {name}"
        elif re.fullmatch(r"(src|docs|tests|scripts|runs|results)/[\w/]*", name):
            assert (ROOT / name).is_dir(), f"{page.name}: {name}"


def symbols(tree: ast.AST, prefix: str = "") -> set[str]:
    """Names that a module or class defines, ``Class.member`` included."""
    found = set()
    for node in getattr(tree, "body", []):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                found |= symbols(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign):
            names = [n for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)]
            found |= {prefix + n.id for n in names}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(prefix + node.target.id)
    return found


def test_symbols_of_the_paper_map_exist():
    pairs = set(re.findall(r"`([\w/]+\.py):([\w.]+)`", (ROOT / "docs" / "paper_map.md").read_text()))
    assert len(pairs) > 50
    for file, symbol in sorted(pairs):
        assert symbol in symbols(ast.parse((PACKAGE / file).read_text())), f"{file}:{symbol}"


@pytest.mark.parametrize(
    ("file", "config", "defaults"),
    [
        (
            "vla/configuration_vita_vla.py",
            "VitaVLAConfig",
            {
                "preset": "ours",
                "ema_decay": 0.0,
                "align_weight": 0.0,
                "dtype": "bfloat16",
                "decoder_init": "teacher",
                "shared_queries": True,
            },
        ),
        (
            "teacher/seer/configuration_seer.py",
            "SeerConfig",
            {"chunk_size": 3, "n_obs_steps": 1, "foresight_steps": 3, "warmup_fraction": 0.05},
        ),
    ],
)
def test_defaults_are_those_of_the_paper_map(file, config, defaults):
    tree = ast.parse((PACKAGE / file).read_text())
    body = next(n for n in tree.body if getattr(n, "name", "") == config).body
    values = {n.target.id: n.value for n in body if isinstance(n, ast.AnnAssign) and n.value is not None}
    for name, value in defaults.items():
        assert ast.literal_eval(values[name]) == value, f"docs/paper_map.md says {name} = {value}"


def test_values_of_our_preset_are_those_of_the_paper_map():
    from lerobot_policy_vita_vla.vla.presets import preset_values

    ours = preset_values("ours", "paper")
    for name, value in {
        "lr": 1e-4,
        "weight_decay": 1e-4,
        "grad_clip_norm": 1.0,
        "warmup_fraction": 0.1,
        "smooth_l1_beta": 0.1,
        "gripper_weight": 0.01,
        "align_loss": "mse",
        "image_shift_px": 0,
        "prompt": "{instruction}",
        "n_obs_steps": 1,
    }.items():
        assert ours[name] == value, f"docs/paper_map.md says {name} = {value}"


# --- generated parts


def test_generated_parts_are_current():
    for path, text in readme_tables.generated().items():
        assert path.is_file() and path.read_text() == text, (
            f"{path.relative_to(ROOT)} is stale: run python scripts/readme_tables.py"
        )


def test_result_tables_show_what_is_there_and_say_what_is_not():
    key, unknown = "a.teacher", "later.number"
    entry = {"value": 0.9, "n": 40, "low": 0.77, "high": 0.96, "command": "a | b", "date": "2026-01-02"}
    text = readme_tables.results_text({key: entry, unknown: {"value": 12345.6}})
    assert "| teacher (Seer, preset tiny) | 0.9 | 0.77 - 0.96 | 40 | `a \\| b` (2026-01-02) |" in text
    assert re.search(rf"`{unknown}` \| 12346 \|", text)
    known = {k for _, rows in readme_tables.TABLES for k in rows}
    assert text.count(readme_tables.NOT_MEASURED) == len(known) - 1
    assert readme_tables.OTHERS not in readme_tables.results_text({})


def test_the_table_of_exact_seeing_gives_rates_and_the_teachers_error(tmp_path):
    rate = {"success_rate": 0.5, "low": 0.4, "high": 0.6}
    row = {"error_m": 0.005, "beta": 1.0, "within_steps": {"200": rate, "500": rate}}
    eyes = {"reach-v3": [0.0, 0.0, 0.0, 0.006, 0.006, 0.006], "push-v3": [0.008, 0.008, 0.008, 0.0, 0.0, 0.0]}
    path = tmp_path / "precision.json"
    assert readme_tables.precision_text(path).startswith("Not measured")
    path.write_text(json.dumps({"rows": [row], "teacher_rms_error_m": eyes}))
    text = readme_tables.precision_text(path)
    assert "| 5 mm | 1 | 0.5 (0.4 - 0.6) | 0.5 (0.4 - 0.6) |" in text
    assert "7 mm off per axis" in text and "6 mm in `reach-v3` and 8 mm in `push-v3`" in text


def test_file_map_and_readme_name_every_folder():
    folders = {path.parent for path in (ROOT / "src").rglob("*.py") if path.read_text().strip()}
    mapped = {ROOT / folder for folder in readme_tables.FOLDERS}
    assert folders <= mapped
    readme = PAGES[0].read_text()
    for folder in folders - {ROOT / "src/vita_vla_cli/verbs"}:
        assert f"`{folder.relative_to(ROOT)}/`" in readme


# --- rules


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_pages_are_plain(page):
    text = page.read_text()
    assert text.isascii(), [c for c in text if not c.isascii()][:5]
    assert text.endswith("\n") and "\t" not in text
    for address in re.findall(r"\w+://[^\s)>`]+", text):
        # Besides papers only policy servers, as an example's address.
        assert address.startswith(("https://arxiv.org/abs/", "ws://127.0.0.1", "wss://10.0.0.5")), address
    for path in re.findall(r"(?<![\w.])/(?:home|root|tmp|work|opt|mnt|usr)/\S*", text):
        pytest.fail(f"{page.name} names a path of some machine: {path}")


def test_readme_is_short():
    by_hand, generated = PAGES[0].read_text().split("<!-- results:begin -->")
    assert len((by_hand + generated.split("<!-- results:end -->")[1]).splitlines()) < 240


def test_script_reports_stale_pages(monkeypatch, tmp_path, capsys):
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# x\n<!-- results:begin -->\nold\n<!-- results:end -->\n")
    monkeypatch.setattr(readme_tables, "ROOT", tmp_path)
    monkeypatch.setattr(readme_tables, "SUMMARY", tmp_path / "summary.json")
    assert readme_tables.main(["--check"]) == 1 and "stale" in capsys.readouterr().err
    assert readme_tables.main([]) == 0 and readme_tables.main(["--check"]) == 0
    assert "old" not in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("no markers\n")
    with pytest.raises(ValueError, match="results:begin"):
        readme_tables.main([])
