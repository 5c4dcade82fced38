"""What differs between model architectures: one table each of tensor names, shapes, transforms,
hyper-parameters.

To add a family, add one `Family` to FAMILIES: its rows say which stored tensor becomes which GGUF tensor, in
which shape, and what is done to it on the way. Names on the GGUF side are llama.cpp's (gguf-py's
constants.py); which tensors are always float32 follows llama.cpp's converter, since its kernels for them
know nothing else. docs/families.md lists what is supported, what is refused, and how each family was checked.

Axes in a row's shape: V vocabulary, E embedding, F feed-forward, H query heads x head width, K key/value
heads x head width, D head width, X experts, M an expert's feed-forward; each family's file names its own.
"""

from edge.conversion.families.gemma3 import GEMMA3
from edge.conversion.families.gemma4 import GEMMA4
from edge.conversion.families.lfm2 import LFM2, LFM2MOE
from edge.conversion.families.llama import LLAMA, MISTRAL, MISTRAL3
from edge.conversion.families.qwen import QWEN2, QWEN3, QWEN3MOE
from edge.conversion.families.qwen35 import QWEN35, QWEN35MOE
from edge.conversion.plan import Config, Plan, match, text_values
from edge.errors import ConversionError
from edge.formats.checkpoint import Checkpoint

FAMILIES = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": MISTRAL,
    "Ministral3ForCausalLM": MISTRAL3,
    "Mistral3ForConditionalGeneration": MISTRAL3,
    "Lfm2ForCausalLM": LFM2,
    "Lfm2MoeForCausalLM": LFM2MOE,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
    "Qwen3MoeForCausalLM": QWEN3MOE,
    "Qwen3_5ForCausalLM": QWEN35,
    "Qwen3_5ForConditionalGeneration": QWEN35,
    "Qwen3_5MoeForCausalLM": QWEN35MOE,
    "Qwen3_5MoeForConditionalGeneration": QWEN35MOE,
    "Gemma3ForCausalLM": GEMMA3,
    "Gemma3ForConditionalGeneration": GEMMA3,
    "Gemma4ForCausalLM": GEMMA4,
    "Gemma4ForConditionalGeneration": GEMMA4,
}


def make_plan(checkpoint: Checkpoint) -> Plan:
    """What the GGUF of a checkpoint holds. Raises ConversionError, see `edge.conversion.plan.match`; unknown
    architecture.
    """
    config = Config(str(checkpoint.folder / "config.json"), text_values(checkpoint.config))
    names = checkpoint.config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str):
        raise ConversionError(f"{config.where}: names no architecture")
    if name not in FAMILIES:
        raise ConversionError(f"{config.where}: {name} is not supported; edge converts {', '.join(FAMILIES)}")
    if config.values.get("quantization_config"):
        raise ConversionError(
            f"{config.where}: the checkpoint is quantized already; convert the original one"
        )
    return match(checkpoint, config, FAMILIES[name])
