"""Reads exports with the transformers that this process imports, which needs nothing of raylm's; run by the test.

What it says of each folder goes to a file: how it answers the asked tokens and what its tokenizer makes of the text.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def read(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Logits of asked["tokens"], what follows them greedily, and the text as ids and back."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=asked["attention"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = torch.tensor([asked["tokens"]])
    with torch.no_grad():
        logits = model(input_ids=tokens).logits[0]
        greedy = model.generate(tokens, max_new_tokens=12, do_sample=False)[0]
    ids = tokenizer(asked["text"])["input_ids"]
    return {
        "dtype": str(model.dtype),
        "logits": logits.float().tolist(),
        "greedy": greedy.tolist(),
        "ids": ids,
        "text": tokenizer.decode(ids),
        "shown": tokenizer.decode(ids, skip_special_tokens=True),
        "ends": [tokenizer.eos_token_id, model.generation_config.eos_token_id],
    }


def tried(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """The same, or what was raised instead: one folder that cannot be read says nothing about the next."""
    try:
        return read(folder, asked)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    import transformers

    asked = json.loads(Path(sys.argv[1]).read_text())
    answers: dict[str, Any] = {name: tried(Path(folder), asked) for name, folder in asked["folders"].items()}
    Path(sys.argv[2]).write_text(json.dumps({"version": transformers.__version__, "answers": answers}))
