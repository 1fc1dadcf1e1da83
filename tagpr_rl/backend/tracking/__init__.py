"""Where the figures of a run go: metrics.jsonl, W&B and TensorBoard."""
