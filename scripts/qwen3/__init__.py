"""Qwen3-Embedding-0.6B on this machine: a checkpoint of its size, and what it costs."""
