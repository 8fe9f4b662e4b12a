"""Translation: parallel text, subword vocabularies, training, decoding and BLEU."""

from fewfold.models.slim_tables import SlimTables
from fewfold.tasks.translation.build import build_model
from fewfold.tasks.translation.corpus import Corpus, read_corpus, read_files
from fewfold.tasks.translation.decode import Translations, translate
from fewfold.tasks.translation.settings import TranslationTraining
from fewfold.tasks.translation.task import LANGUAGE_PAIRS
from fewfold.tasks.translation.training import train_translation
from fewfold.tasks.translation.vocabulary import Vocabularies, train_vocabularies

__all__ = [
    "LANGUAGE_PAIRS",
    "Corpus",
    "SlimTables",
    "TranslationTraining",
    "Translations",
    "Vocabularies",
    "build_model",
    "read_corpus",
    "read_files",
    "train_translation",
    "train_vocabularies",
    "translate",
]
