"""Floor 8: models in the formats of other runtimes. What never enters: argument parsing."""
