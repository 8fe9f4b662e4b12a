"""Text that a model writes."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import GenerationConfig

from fewfold.lm.texts import line_end, unknown_word


def generate(
    model: Any, tokenizer: Any, prompt: str, tokens: int, *, temperature: float = 1.0, top_k: int = 0, seed: int = 0
) -> tuple[str, float]:
    """Go on with a text.

    :param prompt: Its beginning; a line's end stands before it.
    :param tokens: How many tokens to add; line ends do not stop it.
    :param temperature: Of sampling; 0 takes the likeliest token each time.
    :param top_k: Sample among so many likeliest tokens; 0 among all.
    :param seed: Of sampling.
    :return: Prompt and continuation, line ends as such, and seconds a token.
    """
    end = line_end(tokenizer)
    ids = [end, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    device = next(model.parameters()).device
    unknown = unknown_word(tokenizer)
    config = GenerationConfig(
        max_new_tokens=tokens, do_sample=temperature > 0, temperature=temperature or None, top_k=top_k,
        pad_token_id=end, eos_token_id=None, suppress_tokens=None if unknown is None else [unknown],
    )  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        start = time.perf_counter()
        given = torch.tensor([ids], device=device)
        own, model.generation_config = model.generation_config, config  # what is None is filled in from the model's own
        try:
            found = model.eval().generate(given, attention_mask=torch.ones_like(given))
        finally:
            model.generation_config = own
        seconds = time.perf_counter() - start
    name = tokenizer.convert_ids_to_tokens(end)
    written = tokenizer.decode(found[0, 1:]).replace(f" {name} ", "\n").replace(name, "\n")
    return written, seconds / max(1, found.shape[1] - len(ids))
