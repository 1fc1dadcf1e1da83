"""Stages: each turns the folders of earlier stages into a folder of its own, manifest last."""
