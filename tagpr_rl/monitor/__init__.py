"""What a training step is watched by: figures from its responses, in plain Python."""
