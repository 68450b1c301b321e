"""What a target's kernels like, what a model costs on them, and how an attention is computed there."""
