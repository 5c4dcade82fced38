"""Convert a checkpoint to a GGUF, and prove that both are the same model.

families/        one table for each architecture
plan             which tensors and metadata a checkpoint becomes
template         what a chat template does that the user must know
tokenizer        the vocabulary of the GGUF
special_tokens   the special tokens of a GGUF, and what llama.cpp puts around a text
pre_tokenizer    llama.cpp's name for a pre-tokenizer
added_tokens     the tokenizer as transformers assembles it
tokenizer_class  the class with which transformers builds a tokenizer, and the special tokens that it names
class_tokenizer  where transformers builds a tokenizer from its class, and gives other tokens
space_prefix     the space that a tokenizer puts before a text
tokenizer_json   the structure of tokenizer.json
tokenizer_check  compares llama.cpp's tokenization with the checkpoint's
importance       the column weights that each tensor is quantized with
recipe           the types of a mixed-precision file, as lines
header           the GGUF's header
weights          reads, quantizes and writes the tensors
adapter          a LoRA adapter as a separate GGUF
output           where a conversion writes, and what it may replace
verify           reads all data of a GGUF, and converts its source again to compare
inspect          what a GGUF contains and what is wrong with it
"""
