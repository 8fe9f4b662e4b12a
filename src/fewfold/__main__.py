"""``python -m fewfold`` is the command ``fewfold``."""

from fewfold_cli.main import app

app(prog_name="fewfold")
