"""Rows made on the spot in the columns of the hub's data sets, so that a recipe can be rehearsed without them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ROWS = 48

_THINGS = ("kettle", "bridge", "garden", "engine", "letter", "harbour", "violin", "map")
_GOOD = ("Fill it, wait, and pour.", "It spans the river.", "Water it at dusk.", "Oil it first.")
_BAD = ("No.", "I do not know what that is.", "See above", "???")


def _texts(i: int) -> tuple[str, str, str]:
    """An instruction, a better and a worse response: no two rows have the same instruction."""
    thing, number = _THINGS[i % len(_THINGS)], i // len(_THINGS)
    return f"Say how to use {thing} {number}.", f"{_GOOD[i % 4]} ({number})", f"{_BAD[(i + number) % 4]} ({i})"


def _turns(prompt: str, response: str) -> list[Row]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def _ultrafeedback(i: int) -> Row:
    """HuggingFaceH4/ultrafeedback_binarized: the conversation to its end on either side, GPT-4's two scores."""
    prompt, good, bad = _texts(i)
    chosen, rejected = _turns(prompt, good), _turns(prompt, bad)
    row = {"prompt": prompt, "prompt_id": f"{i:064x}", "chosen": chosen, "rejected": rejected, "messages": chosen}
    return row | {"score_chosen": 8.0, "score_rejected": 8.0 - 1.5 * (1 + i % 3)}


def _ultrachat(i: int) -> Row:
    prompt, good, bad = _texts(i)
    messages = [*_turns(prompt, bad), *_turns("Please say more.", good)]
    return {"prompt": prompt, "prompt_id": f"{i:064x}", "messages": messages}


def _post(i: int) -> str:
    return f"SUBREDDIT: r/advice\n\nTITLE: {_texts(i)[0]}\n\nPOST: It stopped on day {i}.\n\nTL;DR:"


def _tldr(i: int) -> Row:
    return {"prompt": _post(i), "completion": " " + _texts(i)[1]}


def _tldr_pairs(i: int) -> Row:
    return {"prompt": _post(i), "chosen": " " + _texts(i)[1], "rejected": " " + _texts(i)[2]}


def _alpaca(i: int) -> Row:
    instruction, good, _ = _texts(i)
    given = {"instruction": instruction, "input": "Two lines." if i % 3 == 0 else "", "output": good}
    return given | {"text": f"### Instruction:\n{instruction}\n\n### Response:\n{good}"}


def _alpacafarm(i: int) -> Row:
    """The pairs that the authors of 2404.14367 relabelled; `y_ref` is the SFT model's answer."""
    prompt, good, bad = _texts(i)
    row = {"prompt": f"<|prompter|>{prompt}<|endoftext|><|assistant|>", "y_ref": bad, "y_w": good, "y_l": bad}
    return row | {"y_ref_score": 0.1, "y_w_score": 1.0, "y_l_score": 0.1, "score_diff": 0.9}


SCHEMAS: dict[str, Callable[[int], Row]] = {
    "HuggingFaceH4/ultrafeedback_binarized": _ultrafeedback,
    "HuggingFaceH4/ultrachat_200k": _ultrachat,
    "trl-lib/tldr": _tldr,
    "trl-lib/tldr-preference": _tldr_pairs,
    "tatsu-lab/alpaca": _alpaca,
    "Asap7772/relabeled_alpacafarm_pythiasft_20K_preference_data": _alpacafarm,
}


# Rows of (data set, split), as the hub's pages state them; the relabelled AlpacaFarm pairs as its authors do.
TRAIN_ROWS: dict[tuple[str, str], int] = {
    ("HuggingFaceH4/ultrafeedback_binarized", "train_prefs"): 61_135,
    ("HuggingFaceH4/ultrachat_200k", "train_sft"): 207_865,
    ("trl-lib/tldr", "train"): 116_722,
    ("trl-lib/tldr-preference", "train"): 92_858,
    ("tatsu-lab/alpaca", "train"): 52_002,
    ("Asap7772/relabeled_alpacafarm_pythiasft_20K_preference_data", "train"): 19_000,
}


def write_rows(data: str, folder: Path) -> str:
    """A file of made rows in the columns of this hub data set; a file that is there stays what it is."""
    if Path(data).is_file():
        return data
    if data not in SCHEMAS:
        raise ValueError(
            f"data: {data} is no file, and the columns of a hub data set of that name are not known here; known are "
            f"{', '.join(SCHEMAS)}: name a file of a few rows with --data"
        )
    path = folder / f"{data.replace('/', '--')}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(SCHEMAS[data](i)) + "\n" for i in range(ROWS)))
    return str(path)
