"""Write the checkpoints and vectors in ``sidecar-py/tests/golden/``: all, or those that are named.

The environment is a throw-away one, that of the benchmark's peers, of several GB::

    .tools/bin/uv venv /tmp/parity
    .tools/bin/uv pip sync --python /tmp/parity/bin/python scripts/bench/requirements-peers.txt
    PYTHONPATH=scripts /tmp/parity/bin/python -m parity

Vectors are pooled and not normalised, from a forward pass in float32 over each text alone.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from parity import families, reference, texts

GOLDEN = Path(__file__).parents[2] / "sidecar-py" / "tests" / "golden"
NUMBER_AND_BREAK = re.compile(r"(\d,)\n\s+(?=[-\d])")

MODULES = [
    {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for number, (kind, path) in enumerate(
        [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    )
]


def main() -> None:
    """Write what is wanted."""
    parser = argparse.ArgumentParser(prog="python -m parity", description=__doc__)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=", ".join(families.FAMILIES))
    names = parser.parse_args().families or list(families.FAMILIES)
    for name in names:
        write(families.FAMILIES[name], GOLDEN / name)


def write(family: families.Family, folder: Path) -> None:
    """Write one checkpoint with its tokenizer, its pooling and its golden vectors."""
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    tokenizer = family.tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    model = reference.random_model(family.config(tokenizer))
    reference.save(model, folder)
    pooling = {"word_embedding_dimension": model.config.hidden_size, f"pooling_mode_{family.pooling}": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(folder / "modules.json", MODULES)
    write_json(folder / "tokenizer_config.json", {"model_max_length": family.longest_text})
    tokenizer.enable_truncation(family.longest_text)
    cases = []
    for text in texts.golden():
        token_ids = tokenizer.encode(text).ids
        cases.append({"text": text, "token_ids": token_ids, **reference.vectors(model, token_ids)})
    (folder / "golden.json").write_text(lines_of({"made_by": reference.VERSIONS, "cases": cases}))


def write_json(file: Path, value: object) -> None:
    """Write a small file for people to read."""
    file.write_text(json.dumps(value, indent=1) + "\n")


def lines_of(golden: dict[str, object]) -> str:
    """Return JSON with a line for each list of numbers."""
    text = json.dumps(golden, indent=1, ensure_ascii=False)
    return NUMBER_AND_BREAK.sub(r"\1 ", text) + "\n"


if __name__ == "__main__":
    main()
