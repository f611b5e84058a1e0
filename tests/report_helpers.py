"""A synthetic run folder with the real layout, and a minimal client of Chromium's DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from lerobot_policy_vita_vla.evaluation.results import summarise, write_json
from lerobot_policy_vita_vla.evaluation.statistics import rate_with_interval
from lerobot_policy_vita_vla.evaluation.video import write_video

TASKS = ["door-open-v3", "drawer-open-v3", "button-press-topdown-v3", "faucet-open-v3", "window-close-v3"]
RATES = {"teacher": 0.97, "finetune": 0.85, "only_finetune": 0.62, "align": 0.7, "no_images": 0.3}


def film(path: Path, seed: int, *, n_frames: int = 24, size: int = 96) -> None:
    """A gripper-like square that moves to a circle."""
    rng = np.random.default_rng(seed)
    goal, yx = rng.integers(20, size - 20, 2), rng.integers(10, size - 10, 2).astype(float)
    rows, columns = np.mgrid[:size, :size]
    frames = np.empty((n_frames, size, size, 3), np.uint8)
    for i in range(n_frames):
        frames[i] = [196, 188, 176]
        frames[i][rows > size * 0.65] = [141, 110, 84]
        frames[i][(rows - goal[0]) ** 2 + (columns - goal[1]) ** 2 < 64] = [190, 60, 50]
        yx += (goal - yx) * 0.12
        y, x = int(yx[0]), int(yx[1])
        frames[i][max(0, y - 5) : y + 5, max(0, x - 5) : x + 5] = [40, 60, 120]
    write_video(path, frames, 20)


def make_run(
    folder: Path,
    *,
    tasks: list[str] = TASKS,
    rates: dict[str, float] = RATES,
    n: int = 12,
    films: int = 2,
    n_frames: int = 24,
    full: bool = True,
) -> Path:
    """Write a run folder; `full` adds every optional part."""
    rng = random.Random(0)
    episodes = [{"id": f"{t}/{s}", "task": t, "seed": s} for t in tasks for s in range(50_000, 50_000 + n)]
    manifest = {
        "version": 1,
        "suite": "metaworld",
        "quality": "light",
        "observation_size": 96,
        "episode_length": 200,
        "episodes": episodes,
        "hash": "9f2c7a51d0b34e68" * 4,
    }
    write_json(folder / "manifest.json", manifest)
    for label, rate in rates.items():
        _evaluation(folder / "eval" / label, label, rate, manifest, films, n_frames, rng)
    if full:
        _optional_parts(folder, tasks, rates, rng)
    return folder


def _evaluation(folder, label, rate, manifest, films, n_frames, rng):
    folder.mkdir(parents=True)
    records, filmed = [], {}
    for i, episode in enumerate(manifest["episodes"]):
        success = rng.random() < rate
        key, video = (episode["task"], success), None
        filmed[key] = filmed.get(key, 0) + 1
        if filmed[key] <= films:
            video = f"videos/{episode['task']}-{episode['seed']}.mp4"
            film(folder / video, i, n_frames=n_frames)
        steps = rng.randint(40, 120) if success else 200
        records.append(
            {
                **episode,
                "suite": "metaworld",
                "success": success,
                "steps": steps,
                "policy_seed": 0,
                "video": video,
            }
        )
    (folder / "episodes.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    result = {
        "label": label,
        "policy_path": f"work/demo/{label}/checkpoints/last/pretrained_model",
        "policy_type": "seer" if label == "teacher" else "vita_vla",
        "manifest_hash": manifest["hash"],
        "command": f"vita-vla eval work/demo/{label} --run work/demo --tasks {','.join(TASKS)} --episodes 12",
        "created": "2026-01-01T00:00:00+00:00",
        "versions": {"lerobot": "0.6.1", "torch": "2.11.0", "mujoco": "3.8.1", "metaworld": "3.0.0"},
        "renderer": {"name": "llvmpipe (LLVM 15.0.6, 256 bits)", "software": True},
        "quality": "light",
        "episodes": len(records),
        "seconds": 61.5,
        "episodes_per_hour": 3512.0,
        **summarise(records),
    }
    write_json(folder / "result.json", result)


def _optional_parts(folder, tasks, rates, rng):
    import pandas

    write_json(folder / "demos/meta/info.json", {"total_episodes": 300, "total_frames": 24_812, "fps": 80})
    pandas.DataFrame(
        {"task_index": range(len(tasks))}, index=[t.replace("-", " ") for t in tasks]
    ).to_parquet(folder / "demos/meta/tasks.parquet")
    for stage, steps, top, floor in [
        ("teacher", 2000, 0.4, 0.012),
        ("align", 1200, 1.1, 0.09),
        ("finetune", 1500, 0.05, 0.011),
        ("only_finetune", 1500, 0.4, 0.016),
    ]:
        rows = []
        for step in range(20, steps + 1, 20):
            loss = (floor + (top - floor) * np.exp(-6 * step / steps)) * (1 + 0.12 * rng.gauss(0, 1) ** 2)
            rows.append(
                {
                    "step": step,
                    "loss": float(loss),
                    "grad_norm": 0.4 + rng.random() / 5,
                    "lr": 1e-3 * (1 - step / steps),
                    "update_s": 0.02,
                }
            )
        (folder / stage).mkdir()
        (folder / stage / "train_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        kind = "seer" if stage == "teacher" else "vita_vla"
        (folder / stage / "command.txt").write_text(
            f"lerobot-train --policy.type={kind} --policy.stage={stage} --dataset.root=work/demo/demos "
            f"--dataset.repo_id=local/demos --steps={steps} --batch_size=64 --output_dir=work/demo/{stage}\n"
        )
        weights = folder / stage / "checkpoints/last/pretrained_model/model.safetensors"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(stage.encode())
    seconds = {"demos": 95.2, "teacher": 62.0, "align": 48.1, "finetune": 57.4, "only_finetune": 58.8}
    steps = [{"name": name, "seconds": value} for name, value in seconds.items()]
    write_json(
        folder / "timing.json", {"steps": [*steps, *({"name": f"eval/{x}", "seconds": 61.5} for x in rates)]}
    )
    write_json(folder / "ablation/ablations.json", ablations())
    qualities = {"align": 0.91, "finetune": 0.86, "only_finetune": 0.31}
    write_json(
        folder / "agreement.json", {label: _agreement(3, quality) for label, quality in qualities.items()}
    )


def ablations(budgets: tuple[int, ...] = (500, 1500), seeds: tuple[int, ...] = (0, 1)) -> dict:
    """As `ablate.run_ablation` writes it, with round numbers."""
    variants = {"two_stage": 0.85, "only_finetune": 0.6, "only_finetune_equal_compute": 0.7, "one_query": 0.8}
    rows = [
        {"label": f"{name}-{steps}-seed{seed}", "variant": name, "why": f"what {name} adds", "seed": seed}
        | {"steps": steps + 400 * name.endswith("compute"), "finetune_steps": steps, "train_seconds": 60.0}
        | rate_with_interval(round(60 * rate) + 2 * seed - 9 * (steps == 500), 60)
        for name, rate in variants.items()
        for steps in budgets
        for seed in seeds
    ]

    def rates(name, steps):
        return [r["success_rate"] for r in rows if (r["variant"], r["finetune_steps"]) == (name, steps)]

    comparisons = []
    for name, steps in [(name, steps) for name in list(variants)[1:] for steps in budgets]:
        ours, theirs = rates("two_stage", steps), rates(name, steps)
        difference = sum(ours) / len(ours) - sum(theirs) / len(theirs)
        entry = {"variant": name, "finetune_steps": steps, "difference": difference}
        entry |= {"low": difference - 0.08, "high": difference + 0.08, "rates_a": ours, "rates_b": theirs}
        entry |= {"n_runs_a": len(ours), "n_runs_b": len(theirs), "n_episodes": 60, "p_value": 0.0123}
        comparisons.append(entry)
    return {"rows": rows, "comparisons": comparisons}


def _agreement(steps: int, quality: float) -> dict:
    """As `evaluation.agreement.compare_answers` returns it; the gripper is binary."""
    r2 = [[quality - 0.03 * t - 0.02 * d for d in range(3)] + [None] for t in range(steps)]
    return {
        "student": "work/demo/finetune",
        "teacher": "work/demo/teacher",
        "dataset": "work/demo/demos",
        "n": 512,
        "action_names": ["x", "y", "z", "gripper"],
        "mae": [[0.05, 0.06, 0.07, 0.02]] * steps,
        "r2": r2,
        "correlation": r2,
        "gripper_agreement": [0.99 - 0.01 * t for t in range(steps)],
        "overall": {"mae": 0.06, "r2": quality - 0.05, "correlation": 0.97, "gripper_agreement": 0.98},
        "teacher_mae": [0.09, 0.1, 0.11, 0.02],
        "student_mae": [0.1, 0.11, 0.12, 0.03],
        "features": {"r2": [quality] * steps, "overall": quality} if quality > 0.5 else None,
    }


class Browser:
    """Headless Chromium with one page, spoken to over the DevTools protocol."""

    def __init__(self, executable: str):
        self.executable = executable

    def visit(
        self, page: Path, *, width: int, height: int, dark: bool, script: str, shot: Path | None = None
    ) -> dict:
        """Open a page, run `script` (an expression or promise); its value, complaints, URLs."""
        return asyncio.run(self._visit(page, width, height, dark, script, shot))

    async def _visit(self, page, width, height, dark, script, shot):
        from websockets.asyncio.client import connect

        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
            self._process(profile) as process,
        ):
            address = await asyncio.to_thread(_devtools_address, process)
            async with connect(address, max_size=None) as socket:
                session = _Session(socket)
                target = (await session.call("Target.createTarget", url="about:blank"))["targetId"]
                attached = await session.call("Target.attachToTarget", targetId=target, flatten=True)
                session.id = attached["sessionId"]
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await session.call(f"{domain}.enable")
                await session.call(
                    "Emulation.setDeviceMetricsOverride",
                    width=width,
                    height=height,
                    deviceScaleFactor=1,
                    mobile=width < 500,
                )
                scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
                await session.call("Emulation.setEmulatedMedia", features=scheme)
                await session.call("Page.navigate", url=page.resolve().as_uri())
                await session.wait_for("Page.loadEventFired")
                answer = await session.call(
                    "Runtime.evaluate",
                    expression=script,
                    awaitPromise=True,
                    returnByValue=True,
                    userGesture=True,
                )
                if "exceptionDetails" in answer:
                    raise RuntimeError(answer["exceptionDetails"])
                if shot:
                    picture = await session.call("Page.captureScreenshot", captureBeyondViewport=True)
                    shot.parent.mkdir(parents=True, exist_ok=True)
                    shot.write_bytes(base64.b64decode(picture["data"]))
                return {
                    "value": answer["result"].get("value"),
                    "complaints": session.complaints,
                    "urls": session.urls,
                }

    @contextlib.contextmanager
    def _process(self, profile: str):
        flags = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars"
        command = [self.executable, *flags.split(), "--remote-debugging-port=0", f"--user-data-dir={profile}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(10)
            process.stderr.close()


class _Session:
    def __init__(self, socket):
        self.socket, self.id, self.n = socket, None, 0
        self.complaints, self.urls, self.seen = [], [], []

    async def call(self, method, **params):
        self.n += 1
        message = {"id": self.n, "method": method, "params": params}
        await self.socket.send(json.dumps(message | ({"sessionId": self.id} if self.id else {})))
        return await self._until(lambda m: m.get("id") == self.n)

    async def wait_for(self, event):
        if event not in self.seen:
            await self._until(lambda m: m.get("method") == event)

    async def _until(self, wanted):
        while True:
            message = json.loads(await asyncio.wait_for(self.socket.recv(), 60))
            self._note(message)
            if wanted(message):
                if "error" in message:
                    raise RuntimeError(message["error"])
                return message.get("result", {})

    def _note(self, message):
        method, params = message.get("method"), message.get("params", {})
        self.seen.append(method)
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.urls.append(params["request"]["url"][:60])


def _devtools_address(process: subprocess.Popen) -> str:
    for line in process.stderr:
        if found := re.search(r"DevTools listening on (ws://\S+)", line):
            return found[1]
    raise RuntimeError("Chromium ended before its DevTools interface was open")
