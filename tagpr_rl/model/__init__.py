"""Building models from nothing."""
