"""What the code in the documents finds: tiny models, texts, and the folders and names that the pages speak of."""

from types import SimpleNamespace

import torch
import transformers as tf

NOUNS, VERBS, SIZES = ["cat", "dog", "house", "tree"], ["sees", "likes", "runs", "sleeps"], ["small", "big", "old"]
WORDS = ["the", "a", "under", "over", *NOUNS, *VERBS, *SIZES]
TEXTS = [f"the {size} {noun} {verb} under a {other}"
         for size in SIZES for noun in NOUNS for verb in VERBS for other in NOUNS]  # fmt: skip


def tokenizer():
    """A tokenizer of few words."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"bcdefghijklmnopqrstuvwxyz"]
    return tf.BertTokenizerFast(vocab={word: place for place, word in enumerate(vocabulary)})


def model(seed=0):
    """A random encoder of two layers."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return tf.BertModel(tf.BertConfig(vocab_size=45, max_position_embeddings=64, **sizes)).eval()


def write(folder):
    """Write `model`, `texts.txt` and a compressed `small` into a folder; give the names that pages use."""
    import fewfold

    words = tokenizer()
    dense = model()
    dense.save_pretrained(folder / "model")
    words.save_pretrained(folder / "model")
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    small = fewfold.compress(model(), fewfold.LowRank(rank=4), calibration=TEXTS[:8], tokenizer=words)
    fewfold.save(small, folder / "small", source=folder / "model")
    found = SimpleNamespace(model=dense, other=model(1), third=model(2), tokenizer=words, texts=TEXTS[:16])
    return {**vars(found), "more_texts": TEXTS}
