"""Tiny random models of every family that the matrix runs over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

VOCAB = 61  # odd, so that int4 rows and shapes do not come out even by luck


@dataclass(frozen=True)
class ModelCase:
    """One tiny model.

    :param build: makes it with random weights.
    :param auto: the Auto class it loads with.
    :param tied: names of the modules that share the token table (heads and second look-ups).
    :param kind: ``text``, ``seq2seq`` or ``image``.
    :param head: linear targets outside of the body, only replaced when named.
    """

    build: Callable[[], Any]
    auto: str
    tied: tuple[str, ...] = ()
    kind: str = "text"
    head: tuple[str, ...] = field(default=())


_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}


def _bert(**kwargs: Any) -> Any:
    return tf.BertConfig(**_SMALL, **kwargs)


def _roberta(**kwargs: Any) -> Any:
    return tf.RobertaConfig(**_SMALL, pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1, **kwargs)


def _distilbert(**kwargs: Any) -> Any:
    return tf.DistilBertConfig(
        vocab_size=VOCAB, dim=16, n_layers=2, n_heads=4, hidden_dim=32, max_position_embeddings=40, **kwargs
    )


def _gpt2(**kwargs: Any) -> Any:
    return tf.GPT2Config(
        vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=4, n_inner=48, n_positions=40, bos_token_id=0, eos_token_id=1,
        **kwargs,
    )  # fmt: skip


def _llama(**kwargs: Any) -> Any:
    return tf.LlamaConfig(**_SMALL, num_key_value_heads=2, bos_token_id=0, eos_token_id=1, **kwargs)


def _t5(**kwargs: Any) -> Any:
    return tf.T5Config(
        vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=1, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **kwargs,
    )  # fmt: skip


def _bart(**kwargs: Any) -> Any:
    return tf.BartConfig(
        vocab_size=VOCAB, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=40,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None, **kwargs,
    )  # fmt: skip


def _vit(**kwargs: Any) -> Any:
    return tf.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=8, patch_size=4,
        **kwargs,
    )  # fmt: skip


def _neox(**kwargs: Any) -> Any:
    return tf.GPTNeoXConfig(**_SMALL, bos_token_id=0, eos_token_id=1, **kwargs)


def _neox_head() -> str:
    """The name of GPT-NeoX's head: ``embed_out`` in older versions of transformers."""
    return next(iter(tf.GPTNeoXForCausalLM._tied_weights_keys)).removesuffix(".weight")


def _bloom(**kwargs: Any) -> Any:
    return tf.BloomConfig(
        vocab_size=VOCAB, hidden_size=16, n_layer=2, n_head=4, hidden_dropout=0.0, attention_dropout=0.0,
        bos_token_id=0, eos_token_id=1, **kwargs,
    )  # fmt: skip


def _own_head(model: Any) -> Any:
    """T5 v1.1 and FLAN: the class declares a tied head, the checkpoint brings one of its own."""
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.all_tied_weights_keys.pop("lm_head.weight")
    return model


MODELS: dict[str, ModelCase] = {
    "bert": ModelCase(lambda: tf.BertModel(_bert()), "AutoModel", head=("pooler.dense",)),
    "bert_mlm": ModelCase(
        lambda: tf.BertForMaskedLM(_bert()), "AutoModelForMaskedLM", ("cls.predictions.decoder",),
        head=("cls.predictions.transform.dense",),
    ),
    "bert_cls": ModelCase(
        lambda: tf.BertForSequenceClassification(_bert(num_labels=3)), "AutoModelForSequenceClassification",
        head=("classifier", "bert.pooler.dense"),
    ),
    "roberta": ModelCase(lambda: tf.RobertaModel(_roberta()), "AutoModel"),
    "roberta_mlm": ModelCase(
        lambda: tf.RobertaForMaskedLM(_roberta()), "AutoModelForMaskedLM", ("lm_head.decoder",), head=("lm_head.dense",)
    ),
    "distilbert": ModelCase(lambda: tf.DistilBertModel(_distilbert()), "AutoModel"),
    "distilbert_mlm": ModelCase(
        lambda: tf.DistilBertForMaskedLM(_distilbert()), "AutoModelForMaskedLM", ("vocab_projector",)
    ),
    "gpt2": ModelCase(lambda: tf.GPT2Model(_gpt2()), "AutoModel"),
    "gpt2_lm": ModelCase(lambda: tf.GPT2LMHeadModel(_gpt2()), "AutoModelForCausalLM", ("lm_head",)),
    "llama": ModelCase(lambda: tf.LlamaModel(_llama()), "AutoModel"),
    "llama_lm": ModelCase(
        lambda: tf.LlamaForCausalLM(_llama(tie_word_embeddings=True)), "AutoModelForCausalLM", ("lm_head",)
    ),
    "llama_untied": ModelCase(
        lambda: tf.LlamaForCausalLM(_llama(tie_word_embeddings=False)), "AutoModelForCausalLM", head=("lm_head",)
    ),
    "neox": ModelCase(lambda: tf.GPTNeoXModel(_neox()), "AutoModel"),
    "neox_lm": ModelCase(lambda: tf.GPTNeoXForCausalLM(_neox()), "AutoModelForCausalLM", head=(_neox_head(),)),
    "bloom_lm": ModelCase(lambda: tf.BloomForCausalLM(_bloom()), "AutoModelForCausalLM", ("lm_head",)),
    "t5": ModelCase(
        lambda: tf.T5Model(_t5()), "AutoModel", ("encoder.embed_tokens", "decoder.embed_tokens"), kind="seq2seq"
    ),
    "t5_lm": ModelCase(
        lambda: tf.T5ForConditionalGeneration(_t5()), "AutoModelForSeq2SeqLM",
        ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head"), kind="seq2seq",
    ),
    "t5_gated": ModelCase(
        lambda: tf.T5ForConditionalGeneration(_t5(feed_forward_proj="gated-gelu")),
        "AutoModelForSeq2SeqLM", ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head"), kind="seq2seq",
    ),
    "t5_own_head": ModelCase(
        lambda: _own_head(tf.T5ForConditionalGeneration(_t5(feed_forward_proj="gated-gelu"))),
        "AutoModelForSeq2SeqLM", ("encoder.embed_tokens", "decoder.embed_tokens"), kind="seq2seq", head=("lm_head",),
    ),
    "bart": ModelCase(
        lambda: tf.BartModel(_bart(scale_embedding=True)), "AutoModel",
        ("encoder.embed_tokens", "decoder.embed_tokens"), kind="seq2seq",
    ),
    "bart_lm": ModelCase(
        lambda: tf.BartForConditionalGeneration(_bart()), "AutoModelForSeq2SeqLM",
        ("model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"), kind="seq2seq",
    ),
    "vit": ModelCase(lambda: tf.ViTModel(_vit()), "AutoModel", kind="image"),
    "vit_cls": ModelCase(
        lambda: tf.ViTForImageClassification(_vit(num_labels=3)), "AutoModelForImageClassification", kind="image",
        head=("classifier",),
    ),
}  # fmt: skip


def make(name: str, seed: int = 0) -> Any:
    """A fresh tiny model in eval mode; every parameter random, biases and norms too, so that each one matters."""
    torch.manual_seed(seed)
    model = MODELS[name].build().eval()
    with torch.no_grad():
        for parameter in {id(p): p for p in model.parameters()}.values():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def inputs(name: str, batch: int = 2, length: int = 7) -> dict[str, Tensor]:
    """Inputs of a model: ids (with padding in the mask), decoder ids, or pixels."""
    generator = torch.Generator().manual_seed(1)
    kind = MODELS[name].kind
    if kind == "image":
        return {"pixel_values": torch.randn(batch, 3, 8, 8, generator=generator)}
    ids = torch.randint(3, VOCAB - 12, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    values = {"input_ids": ids, "attention_mask": mask}
    if kind == "seq2seq":
        values["decoder_input_ids"] = torch.randint(3, VOCAB - 12, (batch, 5), generator=generator)
    return values


@torch.no_grad()
def outputs(model: nn.Module, name: str) -> Tensor:
    """The first output: logits or last hidden states."""
    result = model(**inputs(name))
    first = result.logits if "logits" in result else result.last_hidden_state
    return first.detach().clone()


def auto_class(name: str) -> Any:
    """The Auto class of a model."""
    return getattr(tf, MODELS[name].auto)


def randomized(build):
    """The model that ``build`` makes, in eval mode, every parameter drawn so large that each one matters."""
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.25)
    return model
