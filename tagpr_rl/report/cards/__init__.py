"""Sections and cards: chains, PRMU, faithfulness, sweeps, data and model cards."""
