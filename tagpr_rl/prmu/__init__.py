"""PRMU: a reward model of one user, trained on pairs, that scores (user, question, response).

`pairs`, `requests`, `batcher` and `evaluate` import no torch; the other modules do. Nothing is imported here,
so that a package without torch may use those four.
"""
