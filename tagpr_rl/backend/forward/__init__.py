"""verl's forward pass on every device: attention over packed sequences, and log-probabilities of the loss's tokens."""
