"""What ``transformers`` makes of tokenizer files that contradict each other: ids for the gateway's tests.

Run it in an environment with ``transformers``, which needs no torch for this::

    python -m parity.tokenizers_of_classes > ../gateway/tests/data/tokenizer_classes.json

from ``scripts/``. Each case names a tiny model of ``sidecar-py/tests/golden``, what is changed in its files,
and the ids of each text.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[2] / "sidecar-py" / "tests" / "golden"
TEXTS = [
    "Hello world",
    "HELLO World, caf\u00e9 na\u00efve \u00c5ngstr\u00f6m",
    "  two  spaces\tand\na line ",
    "\u4e2d\u6587 and English\u65e5\u672c",
    "don't 12345 \uff26\uff55\uff4c\uff4c \u00bd \ufb01",
    "[CLS] [MASK] in text <s> <mask> </s> <|endoftext|> <|im_start|>",
    "I\u0307stanbul \u1e9e \u03a3\u03a3",
    "one<mask>two [MASK]three",
]
Change = dict[str, dict[str, Any]]
CONFIG = "tokenizer_config.json"
FILE = "tokenizer.json"
CASED = {
    "type": "BertNormalizer",
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,
    "lowercase": False,
}


def cases() -> list[tuple[str, Change]]:
    """Return a model's name and what is changed in its files: top-level keys only."""
    bert: list[Change] = [
        {},
        {CONFIG: {"do_lower_case": False}},
        {CONFIG: {"do_lower_case": True}, FILE: {"normalizer": CASED}},
        {FILE: {"normalizer": CASED}},
        {
            FILE: {"normalizer": CASED},
            CONFIG: {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "do_lower_case": True,
            },
        },
        {CONFIG: {"strip_accents": False}},
        {CONFIG: {"do_lower_case": False, "strip_accents": True}},
        {CONFIG: {"tokenize_chinese_chars": False}},
        {CONFIG: {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False}},
        {CONFIG: {"split_special_tokens": True}},
        {CONFIG: {"cls_token": "[SEP]", "sep_token": "[CLS]"}},
        {FILE: {"normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}}},
        {
            CONFIG: {
                "added_tokens_decoder": {
                    "4": {
                        "content": "[MASK]",
                        "lstrip": True,
                        "rstrip": False,
                        "single_word": False,
                        "normalized": False,
                        "special": True,
                    }
                }
            }
        },
        {
            "special_tokens_map.json": {
                "mask_token": {
                    "content": "[MASK]",
                    "lstrip": True,
                    "rstrip": True,
                    "single_word": False,
                    "normalized": False,
                }
            }
        },
        {CONFIG: {"extra_special_tokens": ["world"]}},
        {
            CONFIG: {
                "add_bos_token": True,
                "add_eos_token": True,
                "clean_up_tokenization_spaces": False,
                "padding_side": "left",
            }
        },
    ]
    xlm_roberta: list[Change] = [
        {},
        {CONFIG: {"add_prefix_space": False}},
        {CONFIG: {"tokenizer_class": "PreTrainedTokenizerFast"}},
        {CONFIG: {"tokenizer_class": "XLMRobertaTokenizerFast", "do_lower_case": True}},
        {
            FILE: {
                "pre_tokenizer": {
                    "type": "Metaspace",
                    "replacement": "\u2581",
                    "prepend_scheme": "first",
                    "split": True,
                }
            }
        },
    ]
    modernbert: list[Change] = [
        {},
        {
            CONFIG: {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "add_prefix_space": True,
            }
        },
        {CONFIG: {"tokenizer_class": "BertTokenizer", "do_lower_case": True}},
    ]
    qwen3: list[Change] = [
        {},
        {
            CONFIG: {
                "tokenizer_class": "Qwen2Tokenizer",
                "add_prefix_space": True,
                "eos_token": "<|endoftext|>",
            }
        },
        {
            CONFIG: {
                "tokenizer_class": "Qwen2TokenizerFast",
                "split_special_tokens": True,
            }
        },
        {FILE: {"normalizer": {"type": "NFKC"}}},
        {
            FILE: {"normalizer": {"type": "NFKC"}},
            CONFIG: {"tokenizer_class": "PreTrainedTokenizerFast"},
        },
    ]
    return [
        *(("tiny-bert", change) for change in bert),
        *(("tiny-nomic-bert", change) for change in bert[:3]),
        *(("tiny-xlm-roberta", change) for change in xlm_roberta),
        *(("tiny-modernbert", change) for change in modernbert),
        *(("tiny-qwen3", change) for change in qwen3),
    ]


def main() -> None:
    """Print the cases as JSON."""
    import transformers  # noqa: PLC0415 - not needed to import this module

    judged = []
    for name, change in cases():
        with tempfile.TemporaryDirectory() as folder:
            for file in ["config.json", FILE, CONFIG]:
                shutil.copy(GOLDEN / name / file, folder)
            for file, keys in change.items():
                path = Path(folder, file)
                old = json.loads(path.read_text()) if path.exists() else {}
                path.write_text(json.dumps(old | keys))
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            ids = [tokenizer(text)["input_ids"] for text in TEXTS]
        judged.append({"model": name, "change": change, "ids": ids})
    made_by = f"transformers {transformers.__version__}"
    answer = {"made_by": made_by, "texts": TEXTS, "cases": judged}
    json.dump(answer, sys.stdout, ensure_ascii=True, separators=(",", ":"))
    print()  # noqa: T201


if __name__ == "__main__":
    main()
