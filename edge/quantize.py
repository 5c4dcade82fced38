"""llama_model_quantize in a process of its own: `python -m edge.quantize IN OUT FTYPE THREADS`.

llama.cpp ends the whole process where one of its assertions fails, and Ctrl-C cannot stop it from within. As
a child it can be killed, and its end is an error message instead of ours.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from edge.errors import ConversionError

_TENSOR = re.compile(r"\[ *\d+/ *\d+\] +(\S+)")
_FALLBACK = re.compile(r"(\d+) of (\d+) tensor\(s\) required fallback quantization")


def quantize(source: Path, out: Path, ftype: int, threads: int, begun: Callable[[str], None]) -> int:
    """Quantize a GGUF of floats; `begun` is called with each tensor's name. Returns how many took a fallback
    type.

    Raises ConversionError with llama.cpp's own reason.
    """
    package = Path(__file__).resolve().parent.parent
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-P", "-m", "edge.quantize", str(source), str(out), str(ftype), str(threads)]
    fallbacks = 0
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        ) as child:
            try:
                for line in child.stdout or ():
                    kind, _, value = line.strip().partition(" ")
                    if kind == "tensor":
                        begun(value)
                    elif kind == "fallback":
                        fallbacks = int(value)
                child.wait()
            finally:
                child.kill()
        if child.returncode:
            errors.seek(0)
            text = errors.read().decode("utf-8", "replace")
            raise ConversionError(f"llama.cpp cannot quantize {source}: {_reason(text, child.returncode)}")
    return fallbacks


def _reason(log: str, status: int) -> str:
    lines = [" ".join(line.split()) for line in log.splitlines() if line.strip(" =")]
    failed = [line for line in lines if "GGML_ASSERT" in line or "failed to quantize" in line]
    reason = (failed or lines or ["it gives no reason"])[-1]
    return reason if status > 0 else f"{reason} ({signal.Signals(-status).name})"


def _main(source: str, out: str, ftype: str, threads: str) -> int:
    import llama_cpp

    signal.signal(signal.SIGINT, signal.SIG_DFL)

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def report(level: int, text: bytes, _data: ctypes.c_void_p) -> None:
        line = text.decode("utf-8", "replace")
        if tensor := _TENSOR.match(line):
            print("tensor", tensor[1], flush=True)
        elif fallback := _FALLBACK.search(line):
            print("fallback", fallback[1], flush=True)
        elif level == 4:  # GGML_LOG_LEVEL_ERROR
            print(line, end="", file=sys.stderr, flush=True)

    llama_cpp.llama_log_set(report, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = int(ftype)
    params.nthread = int(threads)
    return int(llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params)))


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
