"""Pure tensor functions: decompositions, regressions, rounding. Nothing here knows what a model is."""
