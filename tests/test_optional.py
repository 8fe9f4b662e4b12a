import math

import pytest

from fewfold.optional import require


def test_missing_packages_say_how_to_install_them():
    assert require("math") is math
    with pytest.raises(ImportError, match=r'no_such_package is needed.*pip install "fewfold\[tasks\]"'):
        require("no_such_package.part")
