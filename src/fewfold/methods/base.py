"""What a method is: a config, the sizes it can choose between, a fit, and the modules that run it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from fewfold.budget.budget import Budget
from fewfold.errors import RecipeError
from fewfold.store import Store
from fewfold.stored import StoredDtype
from fewfold.stored.dtypes import StoredDtypeName
from fewfold.surgery.targets import Target

if TYPE_CHECKING:
    from fewfold.assembled import Assembled
    from fewfold.calibration.statistics import Statistics


class MethodConfig(BaseModel):
    """What every method's config has: which weights it replaces and how its tensors are kept."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    targets: str | list[str] = Field(
        "linears",
        description="'linears', 'embeddings', 'all', 'rest' (what these leave: poolers, positions), or names, globs "
        "('encoder.layer.*.query') or regular expressions ('re:layer\\.[0-3]\\.'), one or several",
    )
    exclude: list[str] = Field(default_factory=list, description="patterns to leave as they are")
    layers: str | None = Field(None, description="layer numbers, 0-based, such as '0-3,5' (None: all)")
    fused: Literal["whole", "split"] = Field(
        "whole", description="a fused projection (GPT-2 c_attn) as one matrix, or its q, k and v apart"
    )
    stored_dtype: StoredDtypeName = Field("fp32", description="how the stored tensors are kept on disk")
    group_size: int = Field(32, ge=2, description="numbers that share a scale in int4, int3 and int2")
    budget: Budget | None = Field(None, description="this config's own budget")
    overrides: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="other values of these fields for targets that match a pattern"
    )

    @field_validator("layers")
    @classmethod
    def _layers_parse(cls, value: str | None) -> str | None:
        if value is not None:
            parse_layers(value)
        return value

    @property
    def stored(self) -> StoredDtype:
        """The kept form of this method's tensors."""
        return StoredDtype(self.stored_dtype, self.group_size)


def parse_layers(text: str) -> set[int]:
    """'0-3,5' as {0, 1, 2, 3, 5}.

    :raises RecipeError: for anything else.
    """
    layers: set[int] = set()
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise RecipeError(f"layers={text!r} cannot be read at {piece!r}; write numbers and ranges as '0-3,5'")
        layers.update(range(int(first), int(last if dash else first) + 1))
    return layers


@dataclass(frozen=True)
class Cost:
    """What one size of a unit costs; biases are left out everywhere.

    :param parameters: stored numbers.
    :param bytes: bytes of the stored tensors as kept on disk.
    :param macs: multiply-accumulates a token, in the cheaper of the two forms.
    """

    parameters: int
    bytes: int
    macs: int


STORE = "(store)"  # the key of a store's tensors among those that a fit returns


@dataclass(frozen=True)
class Unit:
    """Targets that a method replaces together, with their config (overrides applied).

    :param layout: what the method itself worked out about them, if anything.
    """

    method: str
    config: MethodConfig
    targets: tuple[Target, ...]
    layout: Any = None

    @property
    def name(self) -> str:
        """The first target's name."""
        return self.targets[0].name

    @property
    def dense_parameters(self) -> int:
        """Numbers of the dense weights, biases left out."""
        return sum(target.numel for target in self.targets)


@dataclass(frozen=True)
class Records:
    """What the structure says of a unit.

    :param targets: settings by target name.
    :param store: settings of the store that the targets share, or None where each owns its tensors.
    """

    targets: Mapping[str, Mapping[str, Any]]
    store: Mapping[str, Any] | None = None


class Method(ABC):
    """One way to assemble weights from stored tensors. Instances are listed in methods/registry.py."""

    name: ClassVar[str]
    config: ClassVar[type[MethodConfig]]
    sized_by: ClassVar[str] = "rank"  # the config's field that settles a size where no budget does
    kinds: ClassVar[tuple[str, ...]] = ("linear", "embedding")  # of targets that it can be given

    def units(self, config: MethodConfig, targets: Sequence[Target], width: int) -> list[Unit]:
        """Group targets that are compressed together; by default every target stands alone.

        :param width: the model's: the size that most of its linear maps have on one side.
        :raises RecipeError: if a target is of a kind that the method does not serve.
        """
        return [Unit(self.name, config, (target,)) for target in targets]

    def takes(self, config: MethodConfig, targets: Sequence[Target]) -> list[Target]:
        """Those of the chosen targets that the config is about; the rest is left to later configs.

        :raises TargetError: if there are none.
        """
        return list(targets)

    def units_in(self, model: nn.Module, config: MethodConfig, targets: Sequence[Target], width: int) -> list[Unit]:
        """As :meth:`units`, for methods that have to look at the model, or take along more of it (norms)."""
        return self.units(config, targets, width)

    @abstractmethod
    def check(self, unit: Unit) -> None:
        """Refuse values that cannot work for these targets.

        :raises RecipeError: naming the target, the value and what is allowed.
        """

    def check_model(self, unit: Unit, model: nn.Module, fit: bool) -> None:  # noqa: B027
        """Refuse a model whose weights the method must not replace.

        :param fit: whether its weights are to be kept as well as the method can.
        :raises RecipeError: naming a target and the mend.
        """

    def keeps_biases(self, unit: Unit) -> bool:
        """Whether biases of fresh modules begin as the model has them."""
        return True

    def calibrates(self, unit: Unit) -> Literal["nothing", "inputs", "inputs and gradients"]:
        """What this unit's fit wants to know of real inputs."""
        return "nothing"

    @abstractmethod
    def fixed(self, unit: Unit) -> Mapping[str, Any] | None:
        """The settings that the config fixes by itself, or None where a budget has to choose."""

    def unbudgeted(self, unit: Unit) -> Mapping[str, Any] | None:
        """The settings where neither the config nor a budget chooses any; None where that is a mistake."""
        return None

    @abstractmethod
    def sizes(self, unit: Unit) -> list[Mapping[str, Any]]:
        """Every choice of settings in rising cost, each cheaper than the dense weights."""

    def may_stay_dense(self, unit: Unit) -> bool:
        """Whether a budget may leave the unit as it is, where that costs least for what it keeps."""
        return True

    @abstractmethod
    def cost(self, unit: Unit, settings: Mapping[str, Any], element_size: int = 4) -> Cost:
        """What ``settings`` cost.

        :param element_size: bytes of one number of the model's own dtype.
        """

    @abstractmethod
    def errors(
        self, unit: Unit, sizes: Sequence[Mapping[str, Any]], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> list[float]:
        """Expected error of the fit at each of ``sizes``, comparable across units (see Statistics).

        :param weights: dense weights by target name, ``(out, in)`` or ``(vocab, dim)``, fp32.
        """

    def settle(
        self, unit: Unit, settings: Mapping[str, Any], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> Mapping[str, Any]:
        """``settings`` with what the weights decide; called once, before the fit."""
        return settings

    def store_name(self, unit: Unit) -> str:
        """What to call the unit's store: letters, digits and ``_``."""
        return self.name

    def notes(self, targets: int, stores: int) -> list[str]:
        """What a summary should say of a model with so many targets of this method, and stores that they share."""
        return []

    def records(self, unit: Unit, settings: Mapping[str, Any]) -> Records:
        """What the structure says of ``unit`` at ``settings``."""
        return Records({target.name: settings for target in unit.targets})

    @abstractmethod
    def fit(
        self, unit: Unit, settings: Mapping[str, Any], weights: Mapping[str, Tensor], statistics: Statistics
    ) -> dict[str, dict[str, Tensor]]:
        """The stored tensors of ``unit`` at ``settings``: by target name (a store's: under ``STORE``), then by their
        name in the module.
        """

    def refits(self, unit: Unit) -> bool:
        """Whether targets of a fitted unit can be fitted once more, one by one, on what comes in by then."""
        return False

    def refit(
        self,
        unit: Unit,
        target: Target,
        module: Assembled,
        weight: Tensor,
        bias: Tensor | None,
        statistics: Statistics,
    ) -> None:
        """Fit what one target has to itself anew, in place, on ``statistics.drift``.

        :param weight: the target's dense weight.
        :param bias: its dense bias.
        """
        raise NotImplementedError(f"{self.name} fits units as a whole")

    def build_store(self, settings: Mapping[str, Any], stored: StoredDtype) -> Store:
        """The empty store of recorded settings, fresh tensors in it, on the current default device."""
        raise NotImplementedError(f"{self.name} keeps no store")

    @abstractmethod
    def build(
        self, target: Target, settings: Mapping[str, Any], stored: StoredDtype, store: Store | None = None
    ) -> Assembled:
        """The empty module that stands for ``target``, fresh weights in it, on the current default device.

        :param settings: as recorded for the target.
        :param store: of the unit, where its record names one.
        """

    def modules(self, unit: Unit, settings: Mapping[str, Any], store_name: str = "store") -> dict[str, Assembled]:
        """The empty modules of a whole unit by target name; a store, if there is one, hangs on them."""
        records, stored, store = self.records(unit, settings), unit.config.stored, None
        if records.store is not None:
            store = self.build_store(records.store, stored)
            store.name = store_name
        return {target.name: self.build(target, records.targets[target.name], stored, store) for target in unit.targets}
