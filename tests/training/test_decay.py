"""Weight decay of models whose layers share norms and biases: of matrices alone, in every trainer."""

from types import SimpleNamespace

import pytest
from layer_models import PLAIN, deep

import fewfold
from fewfold import DistillConfig, SharedLayers
from fewfold.distill.clock import Clock
from fewfold.distill.objective import Objective
from fewfold.distill.pupil import Pupil
from fewfold.distill.teachers import LiveTeacher
from fewfold.distill.trainer import DistillTrainer
from fewfold.pretrain.settings import PretrainSettings
from fewfold.pretrain.trainer import PretrainTrainer, training_arguments
from fewfold.store import stores_of
from fewfold.tasks.finetune import FineTuning, _arguments
from fewfold.tasks.tuner import Tuner
from fewfold.training.arguments import trainer_arguments
from fewfold.training.decay import shared_vectors
from fewfold.training.exact import ExactCheckpoints
from fewfold.training.rounding import Rounding

DECAY = 0.125


def plain(model, folder):
    return ExactCheckpoints(model, trainer_arguments(output_dir=str(folder), weight_decay=DECAY))


def pretraining(model, folder):
    return PretrainTrainer(model, [], list, training_arguments(PretrainSettings(weight_decay=DECAY), folder))


def tuning(rates):
    def build(model, folder):
        settings = FineTuning(weight_decay=DECAY, rates=rates)
        arguments = _arguments(str(folder), 4, settings, 0)
        return Tuner(
            model, arguments, [None] * 4, SimpleNamespace(pad_token_id=0, eos_token_id=2), settings, Rounding(model)
        )

    return build


def distilling(model, folder):
    config = DistillConfig(weight_decay=DECAY, steps=2, minutes=None, logits={})
    objective = Objective(config, model, model)
    pupil = Pupil(model, objective, LiveTeacher(model, objective.needs(1)))
    return DistillTrainer(pupil, [None] * 4, config, Clock(2, None, 0.0), folder)


@pytest.mark.parametrize("build", [plain, pretraining, tuning("equal"), tuning("by_size"), distilling])
@pytest.mark.parametrize("name", ["bert_mlm", "llama_lm"])
def test_what_is_shared_decays_as_its_own(name, build, tmp_path):
    for norms_and_biases in ("private", "shared"):
        model = deep(name, 2)
        fewfold.compress(model, SharedLayers(map="all", norms_and_biases=norms_and_biases, **PLAIN))
        named = [(key, parameter) for key, parameter in model.named_parameters() if parameter.requires_grad]
        optimizer = build(model, tmp_path).create_optimizer()
        decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert {key: decay[id(p)] for key, p in named} == {key: DECAY if p.dim() > 1 else 0.0 for key, p in named}


def test_what_stores_own_of_vectors():
    model = deep("bert_mlm", 2)
    assert not shared_vectors(model)
    fewfold.compress(model, SharedLayers(map="all", norms_and_biases="shared", **PLAIN))
    found = shared_vectors(model)
    assert len(found) == 6 + 2 * 2  # a bias of every map; weight and bias of two norms
    assert found < {key for key, _ in model.named_parameters()}
    assert shared_vectors(next(store for store in stores_of(model).values() if store.shift)) == {"shift.bias"}
