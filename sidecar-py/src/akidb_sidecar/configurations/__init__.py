"""What a ``config.json`` says of a model, family by family; nothing here imports MLX.

Each family has a module with ``read(values) -> Configuration``. It asks for every key that its network
obeys, refuses the values of others that would make it another network, and lists the keys that cannot change
a vector. What is left over is unknown: the model is served, and ``prepare`` warns of it once. The reference
is ``transformers``; docs/MODELS.md has the table.

* ``_values``: one value of a file, judged as it is read.
* ``_common``: the keys that all families share.
* ``_rotary``: the base of rotary angles.
* ``_file``: reading the file, and which family it is of. No other place names them all.
"""

from __future__ import annotations

from akidb_sidecar.configurations._file import FAMILIES, Configuration, File, read
from akidb_sidecar.configurations.bert import BertConfiguration
from akidb_sidecar.configurations.modernbert import ModernBertConfiguration
from akidb_sidecar.configurations.nomic_bert import NomicBertConfiguration
from akidb_sidecar.configurations.qwen3 import Qwen3Configuration

__all__ = [
    "FAMILIES",
    "BertConfiguration",
    "Configuration",
    "File",
    "ModernBertConfiguration",
    "NomicBertConfiguration",
    "Qwen3Configuration",
    "read",
]
