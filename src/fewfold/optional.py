"""Import packages that only some functions need."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str = "tasks") -> ModuleType:
    """Import an optional dependency.

    :param module: Dotted name of the module, such as `scipy.stats`.
    :param extra: The extra of fewfold that installs it.
    :return: The imported module.
    :raises ImportError: If the package is missing; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if error.name is not None and error.name.split(".")[0] != package:
            raise
        raise ImportError(f'{package} is needed here and is not installed: pip install "fewfold[{extra}]"') from error
