"""fewfold: language models a few-fold smaller, by sharing and factoring their weights.

``compress(model, LowRank(), budget=Budget(parameters="1/4 of linears"), calibration=texts, tokenizer=tokenizer)``
replaces weights in place; ``save_pretrained`` and ``AutoModel.from_pretrained`` work as ever once fewfold is
imported; ``distill(dense, model, texts, tokenizer=tokenizer, minutes=20)`` wins quality back; ``densify(model)`` gives
a plain model back.
"""

__version__ = "0.1.0"

from fewfold.assembled import set_form
from fewfold.budget.budget import Budget
from fewfold.checkpoint.densify import densify
from fewfold.checkpoint.hook import install as _install
from fewfold.checkpoint.save import load, save
from fewfold.checkpoint.unshare import unshare
from fewfold.compress import compress
from fewfold.convert.albert import from_albert, to_albert
from fewfold.distill.api import distill
from fewfold.distill.config import DistillConfig
from fewfold.errors import (
    BudgetError,
    CalibrationError,
    CheckpointError,
    DistillError,
    FewfoldError,
    FewfoldWarning,
    ModelError,
    RecipeError,
    TargetError,
    TaskError,
)
from fewfold.methods.dense.config import Dense
from fewfold.methods.embedding_autoencoder.config import EmbeddingAutoencoder
from fewfold.methods.embedding_sharing.config import EmbeddingSharing
from fewfold.methods.low_rank.config import LowRank
from fewfold.methods.shared_basis.config import SharedBasis
from fewfold.methods.shared_factors.config import SharedFactors
from fewfold.methods.shared_layers.config import SharedLayers
from fewfold.methods.subvector_codes.config import SubvectorCodes
from fewfold.methods.tensor_train.config import TensorTrain
from fewfold.methods.tucker.config import Tucker
from fewfold.models.register import install_models as _install_models
from fewfold.recipe import Recipe
from fewfold.stored import pack, unpack
from fewfold.summary import summary

_install()
_install_models()

__all__ = [
    "Budget",
    "BudgetError",
    "CalibrationError",
    "CheckpointError",
    "Dense",
    "DistillConfig",
    "DistillError",
    "EmbeddingAutoencoder",
    "EmbeddingSharing",
    "FewfoldError",
    "FewfoldWarning",
    "LowRank",
    "ModelError",
    "Recipe",
    "RecipeError",
    "SharedBasis",
    "SharedFactors",
    "SharedLayers",
    "SubvectorCodes",
    "TargetError",
    "TaskError",
    "TensorTrain",
    "Tucker",
    "compress",
    "densify",
    "distill",
    "from_albert",
    "load",
    "pack",
    "save",
    "set_form",
    "summary",
    "to_albert",
    "unpack",
    "unshare",
]
