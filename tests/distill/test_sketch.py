import math

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from fewfold.distill.outputs import Needs
from fewfold.distill.sketch import NUMBERS, PART, sketch


def test_large_outputs_are_projected_part_by_part(monkeypatch):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20_000, n_embd=8, n_layer=1, n_head=2, n_positions=32)).eval()
    ids = torch.randint(20_000, (4, 16))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        logits = model(**batch).logits.flatten()
    asked, draw = [], torch.randn

    def noting(*shape, **options):
        asked.append(math.prod(shape))
        return draw(*shape, **options)

    monkeypatch.setattr(torch, "randn", noting)
    found = sketch(model, batch, Needs(logits=True))
    assert max(asked) <= 2**20
    assert sum(asked) == NUMBERS * len(logits) > 2**23
    generator, expected = torch.Generator().manual_seed(0), torch.zeros(NUMBERS, dtype=torch.float64)
    for start in range(0, len(logits), PART):
        part = logits[start : start + PART].double()
        expected += draw(NUMBERS, len(part), generator=generator).double() @ part / len(logits) ** 0.5
    error = torch.tensor(found, dtype=torch.float64) - expected
    assert float(error.norm()) < 1e-5 * float(expected.norm())
