"""Write paper_prompt_s7.json: the paper's prompt of seven LIBERO steps, from its description alone.

    python tests/golden/make_paper_prompt.py

The description (the authors' code): Qwen's chat format; a system turn; per step, oldest first, a user's turn
`<image> <image> {instruction} <state>` and an assistant's turn `<action> <action> <action>`; blanks between
these are tokens; image -200, action -400, state -401. Nothing of the package is used. A tokenizer of bytes
stands in for Qwen's: 0..255 are bytes, the two special tokens come behind them. What follows the
last action token is read by nobody and left out.
"""

import json
from pathlib import Path

START, END, IMAGE, ACTION, STATE = 256, 257, -200, -400, -401
SYSTEM = (
    "You are an AI robot and your name is VITA. You are a large language model in the field of embodied "
    "intelligence. You combine macro action instructions (maybe None), the arm state (the first six values "
    "are the arm's, the seventh is the gripper's) and observations (primary image, wrist image), and predict "
    "step by step only three future actions at each step."
)
INSTRUCTION = "put both moka pots on the stove"


def words(text):
    return list(text.encode())


def turn(role, content):
    return [START, *words(role + "\n"), *content, END, *words("\n")]


def prompt(steps):
    blank = words(" ")
    user = [IMAGE, *blank, IMAGE, *blank, *words(INSTRUCTION), *blank, STATE]
    assistant = [ACTION, *blank, ACTION, *blank, ACTION]
    ids = turn("system", words(SYSTEM))
    for _ in range(steps):
        ids += turn("user", user) + turn("assistant", assistant)
    return ids[: len(ids) - ids[::-1].index(ACTION)]


if __name__ == "__main__":
    made = {
        "steps": 7,
        "tokens_per_image": 49,
        "system": SYSTEM,
        "instruction": INSTRUCTION,
        "specials": {"<|im_start|>": START, "<|im_end|>": END},
        "ids": prompt(7),
    }
    (Path(__file__).parent / "paper_prompt_s7.json").write_text(json.dumps(made) + "\n")
