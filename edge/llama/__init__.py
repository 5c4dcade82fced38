"""The only folder that calls llama.cpp.

library      starts llama.cpp once, loads models, decodes batches
adapters     LoRA adapters: loaded beside a model, put on a context
log          who receives llama.cpp's log, and its last words
aborts       llama.cpp's last words as one line
tryout       tries an unknown file in a child process, in a sandbox where one can be made
names        whether llama.cpp knows the names of an architecture and a tokenizer
devices      devices that llama.cpp can compute on
remote       devices of other machines, through llama.cpp's RPC backend
vocabulary   text to token ids and back
thought_marks  how models mark their thoughts
prefixes     the prefix tree of prompts
jobs         what an engine works on: a prompt and the writer of its answer
cache        sequences, and the states that later prompts continue from
crowding     fewer threads while other programs take the cores
drafts       tokens to decode ahead, and whether that saves time
states       the store of prompt states on disk
restore      when an engine uses and writes states on disk
under_way    a prompt that is read, an answer that is written
engine       token ids in, logits out, many sequences in one cache
serving      the engine of a server, for jobs that arrive while others are written
reader       reads given texts, each node of their prefix tree once
activations  sums of squares of each weight's input, for an importance matrix
loading      the options of loading a model
tuned        the options that edge tune found for a model on this machine
patching     overwrites weights of a loaded model in memory
placement    where a model goes and what memory it may use
memory       the memory that a model takes, from its header
encode       texts to token ids by the tokenizer of a file or folder
speed        how fast this machine multiplies with each type
ggml         quantization kernels of llama.cpp
types        the type of each tensor in a quantized file
"""
