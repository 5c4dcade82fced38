"""Models on disk. edge does not trust these files.

stored         JSON and safetensors headers of a checkpoint
weight_files   which files of a checkpoint hold its weights
checkpoint     a Hugging Face checkpoint folder
hub            the Hugging Face hub: lists and downloads repositories
hub_ggufs      which GGUF of a repository is meant
hub_errors     what a failed request to the hub means
resume         a download that continues after lost connections
index_settings  the package indexes of pip's and uv's settings
package        one file out of a wheel of a package index
default_model  the base of edge's default model
lora           merges a LoRA adapter into a checkpoint
adapter_tokenizer  the tokenizer and the chat template beside a LoRA adapter
template_triggers  what a chat template does for certain contents only
template_contents  which parts of a chat template hold contents of messages, and which test them
tied           embeddings and output: one matrix or two
resized        adapters whose vocabulary has more or fewer rows than the base's
foreign        weights of other programs that edge refuses by name
adapter        a LoRA adapter as a GGUF, and whether it fits a base
floats         number formats: bf16, f16, f32
chat_template  renders a chat template as transformers does
model_card     what a GGUF records of a model card
gguf           a GGUF on disk: its metadata and tensors, whole or in parts
gguf_header    reads a GGUF's header, and trusts no length in it
gguf_names     what the name of a GGUF says: its type, its part
models         which GGUFs of the store and of ./models are usable
facts          what a GGUF says about itself
checksum       CRC-32 checksums of a GGUF
own_files      which GGUFs edge wrote for this user, or tried before
imatrix        importance matrix files
"""
