"""A tiny tokenizer, tiny teachers and students, and a way to run a short distillation."""

import copy

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

import fewfold
from fewfold import DistillConfig, LowRank
from fewfold.distill.watch import Watch

WORDS = ["the", "a", "under", "over", "cat", "dog", "house", "tree", "sees", "likes", "runs", "small", "big", "old"]


def sentences(count, seed=0):
    """Random sentences of 3 to 12 words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 13, (count,), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=generator).tolist()) for n in lengths]


def make_tokenizer(words=WORDS):
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    return BertTokenizerFast(vocab={word: place for place, word in enumerate(names)})


def make_teacher(kind=BertModel, layers=2, width=16, dropout=0.0, seed=0, **values):
    """A random BERT whose every parameter matters."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=19, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=2 * width,
        max_position_embeddings=40, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **values,
    )  # fmt: skip
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def make_student(teacher, stored="fp32", rank=4):
    """The teacher's copy with low-rank linears."""
    return fewfold.compress(
        copy.deepcopy(teacher), LowRank(rank=rank, weighting="none", stored_dtype=stored, targets="linears")
    )


def config(**values):
    """A short config: last hidden states, no validation."""
    base = {"hidden": [{"layers": "last"}], "batch_size": 8, "steps": 6, "validation": 0, "log_steps": 1}
    return DistillConfig(**{**base, "learning_rate": 1e-2, **values})


class Killed(BaseException):
    """Ends a run as a kill does."""


def kill_at(monkeypatch, step):
    """Let a distillation be killed after a step; what comes back lets it live again."""
    original = Watch.on_step_end

    def dying(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise Killed
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(Watch, "on_step_end", dying)
    return lambda: monkeypatch.setattr(Watch, "on_step_end", original)


def parameters(model):
    """All of them in one row, in float64."""
    return torch.cat([parameter.detach().flatten().double() for parameter in model.parameters()])
