"""One run on disk: its folder, manifests, state, checkpoints, metrics and mirror."""
