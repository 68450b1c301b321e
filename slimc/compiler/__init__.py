"""From a checkpoint to a small, verified model or engine."""
