"""In the peers' environment: write the weights as ONNX. ``python -m bench.export_onnx MODEL OUTPUT``."""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import BertModel

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "last_hidden_state"


class Encoder(torch.nn.Module):  # type: ignore[misc]
    """The model with plain tensors as its only inputs and output."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:  # noqa: ANN401
        """``(texts, tokens)`` each, to ``(texts, tokens, dimension)``."""
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state


def main() -> None:
    """Export, with texts and tokens as free dimensions."""
    model = BertModel.from_pretrained(sys.argv[1], attn_implementation="eager").eval()
    ids = torch.ones(2, 7, dtype=torch.long)
    with torch.inference_mode():
        torch.onnx.export(
            Encoder(model),
            (ids, ids, torch.zeros_like(ids)),
            sys.argv[2],
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_axes={name: {0: "texts", 1: "tokens"} for name in (*INPUTS, OUTPUT)},
            opset_version=17,
            dynamo=False,
        )


if __name__ == "__main__":
    main()
