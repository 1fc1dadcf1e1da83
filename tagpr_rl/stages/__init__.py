"""Stages: each one reads the folders of earlier stages and writes a folder of its own, with the manifest last."""
