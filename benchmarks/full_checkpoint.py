#!/usr/bin/env python3
"""Write an LFM2-MoE checkpoint of the target's widths with random bf16 weights, for the figures at full size.

    python benchmarks/full_checkpoint.py full                  8.47 billion parameters, 17 GB
    python benchmarks/full_checkpoint.py small --layers 3      the same widths, fewer layers

Tokenizer and configuration come from models/tiny-terminal. The vocabulary of 128,000 entries is the target's: rows that
the tokenizer does not use are random too. Every layer is a file of its own, so that the memory of one layer is enough.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

TINY = Path(__file__).resolve().parents[1] / "models" / "tiny-terminal"
HIDDEN, DENSE, EXPERT, EXPERTS, VOCABULARY, HEAD, KV_HEADS = 2048, 7168, 1792, 32, 128_000, 64, 8
ATTENTION = (
    2,
    6,
    10,
    14,
    18,
    21,
)  # the layers of the target that are attention; the others are short convolutions
DENSE_LAYERS = 2
SHAPES = dict[str, tuple[int, ...]]


def layer_shapes(index: int) -> SHAPES:
    """Names and shapes of the tensors of one layer, as transformers writes them."""
    prefix = f"model.layers.{index}."
    norms: SHAPES = {"operator_norm.weight": (HIDDEN,), "ffn_norm.weight": (HIDDEN,)}
    if index in ATTENTION:
        mixer: SHAPES = {
            "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            "self_attn.k_proj.weight": (KV_HEADS * HEAD, HIDDEN),
            "self_attn.v_proj.weight": (KV_HEADS * HEAD, HIDDEN),
            "self_attn.out_proj.weight": (HIDDEN, HIDDEN),
            "self_attn.q_layernorm.weight": (HEAD,),
            "self_attn.k_layernorm.weight": (HEAD,),
        }
    else:
        mixer = {
            "conv.conv.weight": (HIDDEN, 1, 3),
            "conv.in_proj.weight": (3 * HIDDEN, HIDDEN),
            "conv.out_proj.weight": (HIDDEN, HIDDEN),
        }
    if index < DENSE_LAYERS:
        feed = feed_forward("feed_forward", DENSE)
    else:
        feed = {"feed_forward.gate.weight": (EXPERTS, HIDDEN), "feed_forward.expert_bias": (EXPERTS,)}
        for expert in range(EXPERTS):
            feed |= feed_forward(f"feed_forward.experts.{expert}", EXPERT)
    return {prefix + name: shape for name, shape in {**norms, **mixer, **feed}.items()}


def feed_forward(name: str, width: int) -> SHAPES:
    return {
        f"{name}.w1.weight": (width, HIDDEN),
        f"{name}.w2.weight": (HIDDEN, width),
        f"{name}.w3.weight": (width, HIDDEN),
    }


def shards(layers: int) -> Iterator[SHAPES]:
    yield {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.embedding_norm.weight": (HIDDEN,)}
    for index in range(layers):
        yield layer_shapes(index)


def write(path: Path, shapes: SHAPES, rng: np.random.Generator) -> int:
    """Write one safetensors file. Returns the number of its parameters."""
    at, header = 0, {}
    for name, shape in shapes.items():
        end = at + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            values = rng.standard_normal(int(np.prod(shape)), dtype=np.float32)
            values *= 0.02
            if "norm" in name:
                values += 1
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    return at // 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=24)
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    kinds = ["full_attention" if index in ATTENTION else "conv" for index in range(args.layers)]
    config |= {"hidden_size": HIDDEN, "intermediate_size": DENSE, "moe_intermediate_size": EXPERT}
    config |= {"num_experts": EXPERTS, "num_experts_per_tok": 4, "num_dense_layers": DENSE_LAYERS}
    config |= {"num_attention_heads": HIDDEN // HEAD, "num_key_value_heads": KV_HEADS, "layer_types": kinds}
    config |= {"num_hidden_layers": args.layers, "vocab_size": VOCABULARY, "tie_word_embeddings": True}
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (TINY / name).exists():
            shutil.copy(TINY / name, args.out / name)
    rng, index, total = np.random.default_rng(0), {}, 0
    for number, shapes in enumerate(shards(args.layers)):
        name = f"model-{number + 1:05d}-of-{args.layers + 1:05d}.safetensors"
        total += write(args.out / name, shapes, rng)
        index |= dict.fromkeys(shapes, name)
    weights = {"metadata": {"total_size": 2 * total}, "weight_map": index}
    (args.out / "model.safetensors.index.json").write_text(json.dumps(weights) + "\n", encoding="utf-8")
    print(f"{args.out}: {total / 1e9:.2f} billion parameters")


if __name__ == "__main__":
    main()
