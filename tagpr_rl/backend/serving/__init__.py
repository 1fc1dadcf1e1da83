"""What `vllm serve` loads from this package."""
