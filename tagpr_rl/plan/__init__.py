"""What a recipe needs before it runs: bytes per device, tokens, FLOPs and hours. Imports no torch.

Nothing is imported here, so that `shapes` can be used where pydantic is not installed (bench/gpu.py).
"""
