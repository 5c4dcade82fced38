"""The only folder that calls llama.cpp.

library      starts llama.cpp once and keeps its log quiet
tryout       tries an unknown file in a child process first
devices      devices that llama.cpp can compute on
vocabulary   text to token ids and back
prefixes     the prefix tree of prompts
engine       token ids in, logits out, many sequences in one cache
serving      an engine for jobs that arrive while others are written
reader       reads given texts, each node of their prefix tree once
activations  what goes into each weight, added up
loading      where a model goes, as one value
placement    where a model goes and what memory it may use
memory       the memory that a model takes, from its header
encode       texts to token ids by a file's or a folder's tokenizer
ggml         quantization kernels of llama.cpp
types        the type of each tensor in a quantized file
"""
