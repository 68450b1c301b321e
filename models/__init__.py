"""Front ends: what the checkpoints of each system mean, as a PyTorch network and as IR."""
