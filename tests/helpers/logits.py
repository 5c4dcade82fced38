"""The logits of a GGUF in llama.cpp compared with those of its checkpoint in transformers."""

from pathlib import Path

import numpy as np

from edge.convert import convert

N_TOKENS = 200


def real_text() -> str:
    """Text of the kind the models see: this repository's own sources."""
    return Path(__file__).read_text("utf-8") + Path(__file__).with_name("actions.py").read_text("utf-8")


def transformers_logits(folder: Path, ids: list[int]) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def llama_cpp_logits(gguf: Path, ids: list[int]) -> np.ndarray:
    """llama.cpp's logits at every position, with its key/value cache in float32 too."""
    import llama_cpp

    llm = llama_cpp.Llama(
        str(gguf),
        n_ctx=256,
        n_batch=256,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    try:
        llm.eval(ids)
        return np.array(llm.scores[: len(ids)])
    finally:
        llm.close()


def same_logits(folder: Path, gguf: Path) -> tuple[float, float]:
    """The largest difference, as a share of the logits' range, and the share of positions with the same best token."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(real_text(), add_special_tokens=False).ids[:N_TOKENS]
    assert len(ids) == N_TOKENS
    wanted, got = transformers_logits(folder, ids), llama_cpp_logits(gguf, ids)
    spread = float(wanted.max() - wanted.min())
    assert spread > 1, "the model says nothing"
    return float(np.abs(wanted - got).max()) / spread, float((wanted.argmax(1) == got.argmax(1)).mean())


def assert_same_logits(folder: Path, tmp_path: Path) -> None:
    gguf = convert(folder, quant="F32", out=tmp_path / "f32.gguf", threads=1).path
    difference, agreement = same_logits(folder, gguf)
    gguf.unlink()  # half a gigabyte for SmolLM2
    print(f"{folder.name}: largest difference {difference:.1e} of the range, same best token {agreement:.1%}")
    assert difference < 0.005
    assert agreement >= 0.995
