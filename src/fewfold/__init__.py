"""fewfold: language models a few-fold smaller."""
