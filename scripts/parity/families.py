"""The families, each with the smallest configuration that shows everything its network does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import BertConfig, ModernBertConfig, NomicBertConfig, XLMRobertaConfig

from parity import vocabularies

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Family:
    """How to make a checkpoint."""

    config: Callable[[Tokenizer], Any]
    tokenizer: Callable[[], Tokenizer]
    pooling: str
    """The default pooling, as ``1_Pooling/config.json`` names it."""
    longest_text: int


def bert(tokenizer: Tokenizer) -> BertConfig:
    """Return heads of 12 numbers, which are of no use to the kernels."""
    return BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=48,
        num_attention_heads=4,
        num_hidden_layers=3,
        intermediate_size=80,
        max_position_embeddings=128,
    )


def xlm_roberta(tokenizer: Tokenizer) -> XLMRobertaConfig:
    """Return sizes that the kernels can compute; 130 positions for 128 tokens."""
    return XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        num_attention_heads=2,
        num_hidden_layers=3,
        intermediate_size=96,
        max_position_embeddings=130,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=tokenizer.token_to_id("<pad>"),
    )


def modernbert(tokenizer: Tokenizer) -> ModernBertConfig:
    """Return a window of 8 tokens to each side in two layers of four."""
    special = {name: tokenizer.token_to_id(f"[{name.upper()}]") for name in ("pad", "cls", "sep")}
    return ModernBertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        num_attention_heads=4,
        num_hidden_layers=4,
        intermediate_size=80,
        max_position_embeddings=1024,
        local_attention=16,
        **{f"{name}_token_id": token for name, token in special.items()},
        bos_token_id=special["cls"],
        eos_token_id=special["sep"],
    )


def nomic_bert(tokenizer: Tokenizer) -> NomicBertConfig:
    """Return heads of 16 numbers, and as many positions as the longest text needs."""
    return NomicBertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=48,
        num_attention_heads=3,
        num_hidden_layers=3,
        intermediate_size=80,
        max_position_embeddings=1024,
    )


FAMILIES = {
    "tiny-bert": Family(bert, vocabularies.bert, "mean_tokens", 128),
    "tiny-modernbert": Family(modernbert, vocabularies.modernbert, "cls_token", 1024),
    "tiny-nomic-bert": Family(nomic_bert, vocabularies.bert, "mean_tokens", 1024),
    "tiny-xlm-roberta": Family(xlm_roberta, vocabularies.xlm_roberta, "mean_tokens", 128),
}
