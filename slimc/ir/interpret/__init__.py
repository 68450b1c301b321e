"""The interpreter: what a model means, in float64."""
