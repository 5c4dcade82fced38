"""The supported model architectures: for each, a table of tensor names, shapes, changes and hyper-parameters.

To add a family, add a `Family` to FAMILIES. Its rows map a stored tensor to a GGUF tensor, with the shape and the
change of the values. GGUF names are those of llama.cpp (gguf-py's constants.py). As in llama.cpp's converter, some
tensors are always float32, because llama.cpp's kernels for them support no other type. docs/families.md lists what is
supported, what is refused, and how each family was checked.

Axes in the shape of a row: V vocabulary, E embedding, F feed-forward, H query heads x head width, K key/value
heads x head width, D head width, X experts, M feed-forward of an expert. Further axes are explained in each file.
"""

from edge.conversion.families.gemma3 import GEMMA3
from edge.conversion.families.gemma4 import GEMMA4
from edge.conversion.families.lfm2 import LFM2, LFM2MOE
from edge.conversion.families.llama import LLAMA, MISTRAL, MISTRAL3
from edge.conversion.families.qwen import QWEN2, QWEN3, QWEN3MOE
from edge.conversion.families.qwen35 import QWEN35, QWEN35MOE
from edge.conversion.plan import Config, Family, Plan, decide_tied, match, text_values
from edge.errors import ConversionError
from edge.formats.checkpoint import Checkpoint
from edge.formats.foreign import check_not_quantized

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
    """Plan the GGUF of a checkpoint.

    Raises CheckpointError if the checkpoint is already quantized, ConversionError if the architecture is unknown, and
    as `edge.conversion.plan.match` does.
    """
    config, family = _family(checkpoint)
    return match(decide_tied(checkpoint, config, family), config, family)


def settled(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with one matrix or two as embeddings and output: compared once, for every later plan.

    Raises as `make_plan` does for a checkpoint that it cannot read.
    """
    return decide_tied(checkpoint, *_family(checkpoint))


def _family(checkpoint: Checkpoint) -> tuple[Config, Family]:
    config = Config(str(checkpoint.folder / "config.json"), text_values(checkpoint.config))
    check_not_quantized(checkpoint.folder, checkpoint.config, checkpoint.tensors)
    names = checkpoint.config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str):
        raise ConversionError(f"{config.where}: names no architecture")
    if name not in FAMILIES:
        raise ConversionError(f"{config.where}: {name} is not supported; edge converts {', '.join(FAMILIES)}")
    return config, FAMILIES[name]
