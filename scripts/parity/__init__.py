"""Tiny random checkpoints of the families of encoders, with vectors that ``transformers`` computes."""
