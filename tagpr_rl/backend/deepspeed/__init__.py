"""DeepSpeed ZeRO as a verl engine: the backend `deepspeed` beside verl's `fsdp2`."""
