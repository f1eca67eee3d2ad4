"""A checkpoint of Qwen3-Embedding-0.6B's true geometry with random weights, to measure speed and memory.

``python -m qwen3.checkpoint [FOLDER] [--bits 4]`` writes MLX's layout: 335 MB with 4 bits. The tokenizer is
that of the tests' tiny checkpoint, of Qwen's form with 2,048 tokens. Vectors of random weights mean nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx

if TYPE_CHECKING:
    from bench.progress import Progress

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "target" / "qwen3-0.6b-4bit-random"
TINY = REPOSITORY / "sidecar-py" / "tests" / "golden" / "tiny-qwen3-4bit"
TINY_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)
GROUP_SIZE = 64
DIMENSION, INNER, LAYERS, VOCABULARY = 1024, 3072, 28, 151_669
HEADS, KEY_HEADS, HEAD_SIZE = 16, 8, 128
SPREAD = 0.03
"""Standard deviation of the weights: about that of the real ones."""
MATRICES = {
    "self_attn.q_proj": (HEADS * HEAD_SIZE, DIMENSION),
    "self_attn.k_proj": (KEY_HEADS * HEAD_SIZE, DIMENSION),
    "self_attn.v_proj": (KEY_HEADS * HEAD_SIZE, DIMENSION),
    "self_attn.o_proj": (DIMENSION, HEADS * HEAD_SIZE),
    "mlp.gate_proj": (INNER, DIMENSION),
    "mlp.up_proj": (INNER, DIMENSION),
    "mlp.down_proj": (DIMENSION, INNER),
}
NORMS = {
    "input_layernorm": DIMENSION,
    "post_attention_layernorm": DIMENSION,
    "self_attn.q_norm": HEAD_SIZE,
    "self_attn.k_norm": HEAD_SIZE,
}


def config(bits: int) -> dict[str, object]:
    """Return ``config.json``."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "eos_token_id": 2044,
        "head_dim": HEAD_SIZE,
        "hidden_act": "silu",
        "hidden_size": DIMENSION,
        "intermediate_size": INNER,
        "max_position_embeddings": 32_768,
        "model_type": "qwen3",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KEY_HEADS,
        "quantization": {"group_size": GROUP_SIZE, "bits": bits},
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1_000_000,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": VOCABULARY,
    }


def write(folder: Path, bits: int) -> None:
    """Write the checkpoint, layer by layer, so that it takes little memory."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TINY_FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(TINY / name, folder / name)
    # The tiny one's limit is its own; the true one is that of the positions.
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "model_max_length": 131_072}))
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    pooling["word_embedding_dimension"] = DIMENSION
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "config.json").write_text(json.dumps(config(bits), indent=1))
    mx.random.seed(5)
    tensors = quantized("model.embed_tokens", VOCABULARY, DIMENSION, bits)
    tensors["model.norm.weight"] = norm(DIMENSION)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name, (outputs, inputs) in MATRICES.items():
            tensors |= quantized(prefix + name, outputs, inputs, bits)
        for name, size in NORMS.items():
            tensors[f"{prefix}{name}.weight"] = norm(size)
        mx.eval(tensors)
        print(f"\rlayer {layer + 1} of {LAYERS}", end="", file=sys.stderr, flush=True)  # noqa: T201 - progress
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "mlx"})
    print(f"\rwritten: {folder}", file=sys.stderr)  # noqa: T201 - progress


def make_once(progress: Progress) -> Path:
    """Return the folder of the checkpoint with 4 bits, made when it is not there."""
    if not (FOLDER / "model.safetensors").is_file():
        progress.say("making the checkpoint of Qwen3's geometry")
        write(FOLDER, 4)
    return FOLDER


def quantized(name: str, outputs: int, inputs: int, bits: int) -> dict[str, mx.array]:
    """Return a random matrix as MLX stores it."""
    matrix = (mx.random.normal((outputs, inputs)) * SPREAD).astype(mx.bfloat16)
    weight, scales, biases = mx.quantize(matrix, group_size=GROUP_SIZE, bits=bits)
    return {f"{name}.weight": weight, f"{name}.scales": scales, f"{name}.biases": biases}


def norm(size: int) -> mx.array:
    """Return the weights of a norm."""
    return (1 + mx.random.normal((size,)) * 0.1).astype(mx.bfloat16)


def main() -> None:
    """Write it where it is wanted."""
    parser = argparse.ArgumentParser(prog="python -m qwen3.checkpoint", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--bits", type=int, default=4, choices=(4, 8))
    flags = parser.parse_args()
    write(flags.folder, flags.bits)


if __name__ == "__main__":
    main()
