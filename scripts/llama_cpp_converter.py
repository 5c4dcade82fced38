#!/usr/bin/env python3
"""Run llama.cpp's convert_hf_to_gguf.py with a fallback name for an unknown pre-tokenizer.

python scripts/llama_cpp_converter.py LLAMA_CPP PRE ARGUMENT ...

LLAMA_CPP is its source tree. PRE is the name, such as lfm2, that is used if the converter does not know the tokenizer's
hash. The arguments are the converter's own. The converter needs torch, transformers and sentencepiece. It runs in a
separate process because its gguf package is newer than the one that edge uses.
"""

import sys
from pathlib import Path
from typing import Any


def main() -> None:
    sources, pre, *arguments = sys.argv[1:]
    sys.path[:0] = [str(Path(sources)), str(Path(sources) / "gguf-py")]
    from conversion.base import TextModel  # type: ignore[import-not-found]

    known = TextModel.get_vocab_base_pre

    def named(model: Any, tokenizer: Any) -> str:
        try:
            return str(known(model, tokenizer))
        except NotImplementedError:
            return pre

    TextModel.get_vocab_base_pre = named
    import convert_hf_to_gguf  # type: ignore[import-not-found]

    sys.argv = ["convert_hf_to_gguf.py", *arguments]
    convert_hf_to_gguf.main()


if __name__ == "__main__":
    main()
