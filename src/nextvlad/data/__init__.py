"""Records on disk to batches of tensors."""
