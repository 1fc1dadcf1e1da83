"""Updates of the policy with verl: configuration, GRPO and SFT trainers, and the hooks they run."""
