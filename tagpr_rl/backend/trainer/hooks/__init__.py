"""Hooks of verl's trainers: rewards and advantages, step log, checkpoints, stop rules."""
