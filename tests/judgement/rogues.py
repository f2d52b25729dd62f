"""What producers, estimators and processes do wrong: each function begins one such behaviour in a world."""
