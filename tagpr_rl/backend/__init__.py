"""The only package that imports verl, vllm, ray and deepspeed."""
