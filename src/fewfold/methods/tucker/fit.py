"""Tucker: shared factors whose cores are mixed from a bank."""

from __future__ import annotations

from fewfold.errors import RecipeError
from fewfold.methods.base import Unit
from fewfold.methods.shared_factors.config import FactoredConfig
from fewfold.methods.shared_factors.fit import FactoredMethod
from fewfold.methods.tucker.config import Tucker

SHARES = 12  # bank sizes that a budget chooses from: this many equal steps up to one core a slice


class TuckerMethod(FactoredMethod):
    """A bank of cores, mixed anew for every slice."""

    name = "tucker"
    config = Tucker
    mixes = True

    def check(self, unit: Unit) -> None:
        """Rank and bank are fixed together or chosen together."""
        config = unit.config
        assert isinstance(config, Tucker)
        if config.rank is not None and config.bank is None:
            raise RecipeError(
                f"Tucker(rank={config.rank}) for {unit.name}: the bank's size is missing; give bank=…, or leave both "
                "open to a budget"
            )
        super().check(unit)

    def bank_size(self, config: FactoredConfig) -> int | None:
        """The config's bank."""
        assert isinstance(config, Tucker)
        return config.bank

    def bank_sizes(self, count: int) -> list[int | None]:
        """Equal steps up to ``count``."""
        return sorted({max(1, count * step // SHARES) for step in range(1, SHARES + 1)})  # type: ignore[return-value]
