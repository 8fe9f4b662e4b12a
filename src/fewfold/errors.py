"""The errors that fewfold raises, and its warnings. Each message names what was wrong, where, and what to do."""


class FewfoldWarning(UserWarning):
    """What comes out may be less than was meant."""


class FewfoldError(ValueError):
    """Base of every error that fewfold raises on purpose."""


class RecipeError(FewfoldError):
    """A recipe, a method config or a preset's name cannot be understood."""


class TargetError(FewfoldError):
    """A pattern matches nothing, or a weight cannot be replaced."""


class CalibrationError(FewfoldError):
    """Calibration data is missing, empty or unusable."""


class BudgetError(FewfoldError):
    """A budget cannot be parsed, applied or reached."""


class CheckpointError(FewfoldError):
    """A checkpoint is incomplete, altered, or written by an unknown version."""


class DistillError(FewfoldError):
    """Teacher, student, data or settings do not fit together, or training went wrong."""


class TaskError(FewfoldError):
    """A task, its data or its settings cannot be used, or a model does not fit the task."""


class ModelError(FewfoldError):
    """A model's config or its inputs cannot be used."""
