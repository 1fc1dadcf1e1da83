"""Training of PRMU: preference pairs, loss, sharding and checkpoints."""
