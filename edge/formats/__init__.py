"""Models on disk. Nothing in these files is trusted.

stored         safetensors headers and small files of a checkpoint
checkpoint     a Hugging Face checkpoint folder
lora           a LoRA adapter, merged into a checkpoint
floats         number formats: bf16, f16, f32
chat_template  a chat template, rendered as transformers does
gguf           a GGUF on disk: header, metadata, tensors
facts          what a GGUF says about itself
checksum       CRC-32 sums of a GGUF
imatrix        importance matrix files
"""
