"""Running exported models: the predictor and its backends. Nothing here needs torch but ``runtime.torch``."""
