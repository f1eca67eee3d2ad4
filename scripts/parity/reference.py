"""Random models of ``transformers``, their files and their vectors."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from pathlib import Path

transformers.utils.logging.disable_progress_bar()
VERSIONS = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
SEED = 5
# So large that attention is far from even, and that no layer can be left out unnoticed.
MATRIX_SPREAD, TABLE_SPREAD, NORM_SPREAD, BIAS_SPREAD = 0.15, 0.5, 0.2, 0.1


def random_model(config: Any) -> Any:  # noqa: ANN401 - a configuration and a model of any architecture
    """Return a model whose matrices are float16 numbers, computed in float32."""
    model = transformers.AutoModel.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, tensor in sorted(model.named_parameters()):
            numbers = torch.randn(tensor.shape, generator=generator)
            if "norm" in name.lower():
                is_weight = name.endswith("weight")
                tensor.copy_(1 + numbers * NORM_SPREAD if is_weight else numbers * BIAS_SPREAD)
            elif tensor.dim() == 1:
                tensor.copy_(numbers * BIAS_SPREAD)
            else:
                spread = TABLE_SPREAD if "embeddings" in name else MATRIX_SPREAD
                tensor.copy_((numbers * spread).half())
    return model


def save(model: Any, folder: Path) -> None:  # noqa: ANN401 - a model of any architecture
    """Write ``config.json``, and the weights: matrices as float16, the rest as float32."""
    config = model.config.to_json_string(use_diff=True)
    (folder / "config.json").write_text(config if config.endswith("\n") else config + "\n")
    with TemporaryDirectory() as saved:
        model.save_pretrained(saved)  # which names some tensors otherwise than the model does
        stored = load_file(f"{saved}/model.safetensors")
    tensors = {
        name: (tensor.half() if tensor.dim() > 1 else tensor).contiguous()
        for name, tensor in sorted(stored.items())
        if not name.startswith("pooler.")
    }
    save_file(tensors, str(folder / "model.safetensors"), {"format": "pt"})


def vectors(model: Any, token_ids: list[int]) -> dict[str, list[float]]:  # noqa: ANN401 - see above
    """Return the vectors of one text: pooled in each way, not normalised."""
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([token_ids])).last_hidden_state[0]
    pooled = {"mean": hidden.mean(dim=0), "cls": hidden[0], "last": hidden[-1]}
    return {name: [float(f"{number:.7g}") for number in vector.tolist()] for name, vector in pooled.items()}
