"""From a checkpoint to a GGUF, and the proof that both are the same model.

families/        one table for each architecture
plan             which tensors and metadata a checkpoint becomes
tokenizer        the vocabulary of the GGUF
tokenizer_check  llama.cpp's tokenization compared with the checkpoint's
header           the GGUF's header
weights          reads, quantizes and writes the tensors
verify           reads all data of a GGUF, and makes it again from its source
inspect          what a GGUF is and what is wrong with it
"""
