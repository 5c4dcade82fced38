"""A program that loads a GGUF in llama.cpp and prints the sizes of the buffers it allocates."""

ALLOCATE = """
import re, sys
from llama_cpp import llama_cpp as lib

log = []
listen = lib.llama_log_callback(lambda level, text, data: log.append(text.decode()))
lib.llama_log_set(listen, None)
model = lib.llama_model_load_from_file(sys.argv[1].encode(), lib.llama_model_default_params())
for case in sys.argv[2:]:
    cells, sequences, batch, kind, flash, unified = map(int, case.split(","))
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_seq_max, params.kv_unified = cells, sequences, bool(unified)
    params.n_batch = params.n_ubatch = batch
    params.type_k = params.type_v = kind
    params.flash_attn_type = flash
    log.clear()
    lib.llama_free(lib.llama_init_from_model(model, params))
    for name in ("KV", "RS", "compute", "output"):
        print(sum(map(float, re.findall(rf" {name} buffer size = +([\\d.]+) MiB", "".join(log)))), end=" ")
    print()
"""
