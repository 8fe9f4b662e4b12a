import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from fewfold import TaskError
from fewfold.lm.corpus import word_corpus
from fewfold.lm.generate import generate
from fewfold.lm.sizes import slim_size
from fewfold.lm.texts import encode
from fewfold.models import SlimLMConfig, SlimLMForCausalLM


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["", "w1 w4 unheard"])
def test_greedy_text_against_a_loop(prompt, corpus):
    model = SlimLMForCausalLM(
        SlimLMConfig(vocab_size=len(corpus.tokenizer), hidden_size=16, eos_token_id=1, initializer_range=1.0)
    ).eval()
    ids = [1, *corpus.tokenizer(prompt)["input_ids"]]
    output = model(input_ids=torch.tensor([ids]))
    found = []
    for _ in range(30):
        logits = output.logits[0, -1].clone()
        logits[0] = -torch.inf  # <unk> is never written
        found.append(int(logits.argmax()))
        output = model(input_ids=torch.tensor([[found[-1]]]), state=output.state)
    written, seconds = generate(model, corpus.tokenizer, prompt, 30, temperature=0)
    expected = corpus.tokenizer.decode([*ids[1:], *found])
    assert written == expected.replace(" <eos> ", "\n").replace("<eos>", "\n")
    assert seconds > 0
    assert model.generation_config.eos_token_id == 1


def test_line_ends_of_tokenizers_that_have_one_special_token():
    backend = Tokenizer(WordLevel({"<|endoftext|>": 0, "a": 1, "b": 2}))
    backend.pre_tokenizer = WhitespaceSplit()
    special = dict.fromkeys(("eos_token", "bos_token", "unk_token"), "<|endoftext|>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    assert encode(tokenizer, ["a b", "b"]).unknown == 0  # line ends are no unknown words
    model = SlimLMForCausalLM(SlimLMConfig(vocab_size=3, hidden_size=4, eos_token_id=0))
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    assert generate(model, tokenizer, "a", 3, temperature=0)[0].replace(" ", "") == "a\n\n\n"


def test_seeds_decide_and_leave_the_global_state(corpus):
    model = SlimLMForCausalLM(SlimLMConfig(vocab_size=len(corpus.tokenizer), hidden_size=16, eos_token_id=1))
    before = torch.get_rng_state()
    texts = [generate(model, corpus.tokenizer, "w1", 20, seed=seed)[0] for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(before, torch.get_rng_state())
    assert len(texts[0].split()) <= 21


def test_sampling_among_all_words_or_few():
    words = [f"w{place}" for place in range(300)]
    corpus = word_corpus([" ".join(words)])
    config = SlimLMConfig(vocab_size=len(corpus.tokenizer), hidden_size=4, eos_token_id=1, initializer_range=1e-4)
    model = SlimLMForCausalLM(config)
    drawn = {top: len({*generate(model, corpus.tokenizer, "w1", 400, top_k=top)[0].split()}) for top in (0, 5)}
    assert drawn[0] > 150  # of nearly equal chances 400 draws find about three quarters
    assert drawn[5] < 100


@pytest.mark.parametrize(
    ("given", "expected"),
    [("1/10", {"ratio": 10}), ("0.02", {"ratio": 50}), ("200KB", {"bytes": 200_000}), ("1.5 MB", {"bytes": 1_500_000})],
)
def test_sizes_as_written(given, expected):
    assert slim_size(given, 8, 3) == {"positions": 8, "seed": 3, **expected}
    assert slim_size(None, 8) is None


@pytest.mark.parametrize("given", ["ten", "10", "1/0", "0", "-1/2"])
def test_sizes_that_mean_nothing(given):
    with pytest.raises(TaskError, match=f"slim size '{given}'"):
        slim_size(given, 8)
