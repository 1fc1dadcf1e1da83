"""Labellers that give each step a tag, and the discovery of a tag schema from free labels."""
