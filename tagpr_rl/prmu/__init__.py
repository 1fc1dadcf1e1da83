"""PRMU: a reward model that scores a response to a question for one user. It is trained on preference pairs.

These modules import no torch: accuracy, quality, serving.{batcher,cache,requests}, training.{preferences,probes} and
users.table. This file imports nothing, so that they work in an environment without torch.
"""
