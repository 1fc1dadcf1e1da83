"""Scoring with a trained PRMU: request batches, micro-batches and the cache of profile items."""
