"""What is watched in a training step: metrics from its responses, alerts and stop rules, in plain Python."""
