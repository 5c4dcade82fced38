// A device of an RPC server that reports less memory than the CPU has, as a small GPU does.
#include "ggml-backend-impl.h"

static size_t reported;

static void report_memory(ggml_backend_dev_t, size_t * free, size_t * total) {
    *free = *total = reported;
}

extern "C" __attribute__((visibility("default"))) void limit_memory(ggml_backend_dev_t device, size_t bytes) {
    reported = bytes;
    device->iface.get_memory = report_memory;
}
