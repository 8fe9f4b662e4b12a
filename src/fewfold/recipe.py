"""Recipes: an ordered list of method configs, from Python, YAML, or a preset's name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fewfold.budget.budget import Budget
from fewfold.distill.config import DistillConfig
from fewfold.distill.presets import phases_of
from fewfold.errors import BudgetError, RecipeError
from fewfold.methods.base import MethodConfig
from fewfold.methods.dense.config import Dense
from fewfold.methods.embedding_autoencoder.config import EmbeddingAutoencoder
from fewfold.methods.embedding_sharing.config import EmbeddingSharing
from fewfold.methods.low_rank.config import LowRank
from fewfold.methods.shared_basis.config import SharedBasis
from fewfold.methods.shared_factors.config import SharedFactors
from fewfold.methods.shared_layers.config import SharedLayers
from fewfold.methods.shared_layers.presets import LAYERS
from fewfold.methods.subvector_codes.config import SubvectorCodes
from fewfold.methods.tensor_train.config import TensorTrain
from fewfold.methods.tucker.config import Tucker

AnyConfig = Annotated[
    LowRank
    | SharedBasis
    | SharedFactors
    | Tucker
    | TensorTrain
    | SharedLayers
    | SubvectorCodes
    | EmbeddingAutoencoder
    | EmbeddingSharing
    | Dense,
    Field(discriminator="method"),
]


class Recipe(BaseModel):
    """What is done to a model, in order: the first config that names a target takes it.

    :param methods: one config a step.
    :param budget: budgets that span the configs (each config may also carry its own).
    :param sequential: fit target by target on the inputs that the compressed part before it gives.
    :param recover: distillation from the dense model afterwards: minutes, '20min', '300 steps', a preset's name, or
        the fields of a DistillConfig, one or several phases.
    :param name: what to call it.
    :param source: the paper and table row that a preset reproduces.
    """

    model_config = ConfigDict(extra="forbid")

    methods: list[AnyConfig] = Field(min_length=1)
    budget: list[Budget] = Field(default_factory=list)
    sequential: bool = True
    recover: list[DistillConfig] = Field(default_factory=list)
    name: str = "custom"
    source: str = ""

    @field_validator("budget", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        items = value if isinstance(value, list | tuple) else [value]
        return [Budget.parse(item) for item in items if item is not None]

    @field_validator("recover", mode="before")
    @classmethod
    def _phases(cls, value: Any) -> Any:
        return phases_of(value) if value or value == 0 else []

    @classmethod
    def of(cls, source: Any) -> Recipe:
        """A recipe from a config, a list of configs, a Recipe, a YAML path or a preset's name.

        :raises RecipeError: naming what was not understood and what is known.
        """
        if isinstance(source, Recipe):
            return source
        if isinstance(source, MethodConfig):
            return cls(methods=[source])  # type: ignore[list-item]
        if isinstance(source, str | os.PathLike):
            path = Path(source)
            if path.suffix in (".yaml", ".yml"):
                return cls.from_yaml(path)
            return cls.preset(str(source))
        if isinstance(source, dict):
            return cls._validated(source, "the recipe")
        if isinstance(source, Iterable):
            steps = list(source)
            wrong = next((step for step in steps if not isinstance(step, MethodConfig)), None)
            if wrong is not None or not steps:
                raise RecipeError(f"a recipe is a list of method configs such as LowRank(); got {wrong!r}")
            return cls(methods=steps)
        raise RecipeError(
            f"{type(source).__name__} is no recipe; pass a method config, a list of them, a Recipe, a YAML path or "
            f"one of the presets {', '.join(PRESETS)}"
        )

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a recipe file.

        :raises RecipeError: if the file is missing, no YAML, or holds a wrong key or value.
        """
        path = Path(path)
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"recipe {path} cannot be read: {error.strerror}") from None
        except yaml.YAMLError as error:
            raise RecipeError(f"recipe {path} is no YAML: {error}") from None
        if isinstance(data, list):
            data = {"methods": data}
        if not isinstance(data, dict):
            raise RecipeError(f"recipe {path} is empty; write a list under 'methods:'")
        return cls._validated(data, f"recipe {path}")

    @classmethod
    def _validated(cls, data: dict[str, Any], where: str) -> Recipe:
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            lines = []
            for problem in error.errors():
                place = ".".join(str(piece) for piece in problem["loc"])
                lines.append(f"{place}: {problem['msg'].removeprefix('Value error, ')}")
            raise RecipeError(f"{where} is wrong at " + "; ".join(lines)) from None

    def to_yaml(self, path: str | os.PathLike[str]) -> None:
        """Write a recipe file that :meth:`from_yaml` reads back equal."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        data["methods"] = [
            {"method": config.method, **config.model_dump(mode="json", exclude_defaults=True)}
            for config in self.methods
        ]
        Path(path).write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")

    @classmethod
    def preset(cls, name: str) -> Recipe:
        """A recipe by name.

        :raises RecipeError: listing the presets.
        """
        if name in PRESETS:
            return PRESETS[name]()
        published = _published(name)
        if published is None:
            raise RecipeError(
                f"preset {name!r} is unknown; presets are {', '.join(PRESETS)} and other II-<d>, III-<d>, "
                "IV-<l>-<d> (or give a .yaml file)"
            )
        return published


PUBLISHED = ("III-384", "III-64", "IV-72-384", "IV-36-256", "IV-36-128")  # the sizes that the paper's tables have


def _published(name: str) -> Recipe | None:
    """The recipe of a name as Ren et al. (ICLR 2022) give them: ``II-55``, ``III-64``, ``IV-72-384``.

    Shared factors and Tucker are those of the paper's code: fitted to the weights alone, slices as they are.
    """
    match = re.fullmatch(r"(II|III)-(\d+)|IV-(\d+)-(\d+)", name)
    if match is None:
        return None
    source = f"Ren et al., Exploring Extreme Parameter Compression for Pre-trained Language Models (ICLR 2022), {name}"
    config: MethodConfig
    try:
        if match[1] == "II":
            config = LowRank(rank=int(match[2]), weighting="none", square_core=True)
        elif match[1] == "III":
            config = SharedFactors(
                rank=(int(match[2]), int(match[2])), weighting="none", normalise=False, orientation="published"
            )
        else:
            config = Tucker(
                bank=int(match[3]), rank=(int(match[4]), int(match[4])), weighting="none", normalise=False,
                orientation="published", sweeps=10,
            )  # fmt: skip
    except ValidationError as error:
        raise RecipeError(f"preset {name!r}: {error.errors()[0]['msg']}") from None
    return Recipe(methods=[config], name=name, source=source)  # type: ignore[list-item]


def _preset(name: str, source: str, *methods: MethodConfig) -> Callable[[], Recipe]:
    return lambda: Recipe(methods=[m.model_copy(deep=True) for m in methods], name=name, source=source)  # type: ignore[misc]


PRESETS: dict[str, Callable[[], Recipe]] = {
    name: _preset(name, source, *methods)
    for name, source, methods in (
        ("low-rank", "ours: calibrated low rank on the linears", [LowRank()]),
        (
            "low-rank-int8",
            "ours: calibrated low rank on the linears, factors kept in int8",
            [LowRank(stored_dtype="int8")],
        ),
        (
            "low-rank-embeddings",
            "ours: count-weighted low rank on the token table",
            [LowRank(targets="embeddings")],
        ),
        (
            "low-rank-all",
            "ours: calibrated low rank on linears and token table",
            [LowRank(targets="linears"), LowRank(targets="embeddings")],
        ),
        ("shared-factors", "ours: calibrated shared factors on the linears", [SharedFactors()]),
        ("tucker", "ours: calibrated shared factors with a bank of cores on the linears", [Tucker()]),
        ("shared-basis", "ours: calibrated bases shared by pairs of layers on the linears", [SharedBasis()]),
        (
            "basis-sharing",
            "Wang et al., Basis Sharing (ICLR 2025): pairs of layers, 20% of the numbers removed, attention output and "
            "second feed-forward weight a layer",
            [SharedBasis(keep=0.8, group=2, writers="apart", weighting="inputs")],
        ),
        (
            "embedding-autoencoder",
            "ours: latents and decoder of the token table, fitted in closed steps for direction",
            [EmbeddingAutoencoder()],
        ),
        (
            "direction-autoencoder",
            "Bałazy et al. (RepL4NLP 2021, arXiv 2106.08181): the linear auto-encoder, latents of 75 numbers (1/10 of "
            "BERT-base's token table)",
            [EmbeddingAutoencoder(rank=75, solver="published", weighting="none")],
        ),
        ("embedding-default", "ours: codes into codebooks for the token table", [SubvectorCodes(targets="embeddings")]),
        (
            "codes-default",
            "ours: codes into codebooks for linears and token table, int8 for poolers and positions",
            [
                SubvectorCodes(targets="linears"),
                SubvectorCodes(targets="embeddings"),
                Dense(targets="rest", stored_dtype="int8"),
            ],
        ),
        (
            "low-rank-codes",
            "ours, for very few bytes: calibrated low rank of the linears in int3, codes for the token table, int8 for "
            "poolers and positions",
            [
                LowRank(stored_dtype="int3"),
                SubvectorCodes(targets="embeddings"),
                Dense(targets="rest", stored_dtype="int8"),
            ],
        ),
        (
            "embedding-sharing",
            "ours: VEPS, packed, all layers of a stack sharing their weights; for training from scratch",
            [EmbeddingSharing()],
        ),
        (
            "veps-128",
            "Hu et al., ShareBERT (AAAI 2024): a table of 128 numbers a token, its virtual embeddings carved, biases "
            "as the reference's; the model's own shape is kept",
            [EmbeddingSharing(factor_size=128, bias_init="normal", init_std=0.02)],
        ),
        (
            "eps",
            "Hu et al., ShareBERT (AAAI 2024) and Neural Networks 191 (2025): hidden weights out of the table itself",
            [EmbeddingSharing(expansion=False, init_std=0.02)],
        ),
        (
            "layers-default",
            "ours: every block serves two neighbouring layers, its start their aligned mean, most of it one of them; "
            "differences by budget",
            [SharedLayers()],
        ),
        ("svd", "truncated SVD of every linear (Eckart and Young 1936)", [LowRank(weighting="none")]),
        ("int8", "round to nearest, int8 a row", [Dense(targets="all", stored_dtype="int8")]),
        ("int4", "round to nearest, int4 in groups of 32", [Dense(targets="all", stored_dtype="int4")]),
    )
}


def _named(name: str) -> Callable[[], Recipe]:
    recipe = _published(name)
    assert recipe is not None
    return lambda: recipe.model_copy(deep=True)


PRESETS.update({name: _preset(name, source, *methods) for name, source, methods in LAYERS})
PRESETS.update({name: _named(name) for name in PUBLISHED})


def as_budgets(budget: Any) -> list[Budget]:
    """Budgets from None, one Budget, a dict, a string or a list of these.

    :raises BudgetError: if one cannot be understood.
    """
    if budget is None:
        return []
    items = budget if isinstance(budget, list | tuple) else [budget]
    try:
        return [Budget.parse(item) for item in items]
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise BudgetError(message) from None
