#!/usr/bin/env python3
"""Quantize with a recipe by llama.cpp's own llama-quantize, and compare with edge's file: types and data.

    python scripts/llama_quantize.py CHECKPOINT RECIPE ROWS [--folder build/llama-quantize]

It builds llama-quantize from the sources in build/sdist (`make test` fetches them) against the installed libraries: six
files, about a minute. ROWS are the rows for the importance matrix. The exit code is 1 if a tensor differs.
"""

import argparse
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import llama_cpp

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    *("tools/quantize/quantize.cpp", "tools/quantize/main.cpp", "common/common.cpp", "common/json.cpp"),
    *("common/imatrix-loader.cpp", "common/log.cpp"),
)
INCLUDE = ("include", "ggml/include", "common", "vendor", "tools/quantize")
# Only the parts that llama-quantize calls are linked, so this is all that is missing.
MISSING = """#include "build-info.h"
void llama_print_build_info(const char *, FILE *) {}
"""


def built(folder: Path) -> Path:
    """The program; made if it is not there."""
    program = folder / "llama-quantize"
    if program.is_file():
        return program
    sdists = sorted((ROOT / "build" / "sdist").glob("llama_cpp_python-*.tar.gz"))
    if not sdists:
        raise SystemExit("build/sdist has no llama-cpp-python sdist: run make test, which fetches it")
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(sdists[-1]) as archive:
        for member in archive:
            inner = member.name.partition("/vendor/llama.cpp/")[2]
            if member.isfile() and inner.startswith((*INCLUDE, "common/")):
                file = archive.extractfile(member)
                assert file is not None
                (folder / inner).parent.mkdir(parents=True, exist_ok=True)
                (folder / inner).write_bytes(file.read())
    (folder / "missing.cpp").write_text(MISSING)
    objects = []
    for source in (*SOURCES, "missing.cpp"):
        objects.append(folder / f"{Path(source).stem}.o")
        flags = [f"-I{folder / place}" for place in INCLUDE]
        flags += ["-O1", "-std=c++17", "-ffunction-sections", "-fdata-sections"]
        subprocess.run(["g++", *flags, "-c", folder / source, "-o", objects[-1]], check=True)
    libraries = Path(llama_cpp.__file__).parent / "lib"
    link = [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lllama", "-lggml", "-lggml-base", "-lpthread"]
    subprocess.run(["g++", "-Wl,--gc-sections", *objects, *link, "-o", program], check=True)
    return program


def main() -> int:
    from edge.conversion.recipe import read_recipe
    from edge.convert import TensorTypes, convert
    from edge.formats.gguf import read_tensors
    from edge.measure.calibrate import calibrate

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "llama-quantize")
    args = parser.parse_args()
    program = built(args.folder)
    base, matrix = args.folder / "base.gguf", args.folder / "rows.imatrix"
    convert(args.checkpoint, quant="bf16", out=base, force=True)
    calibrate(base, matrix, rows=args.rows, force=True)
    types = TensorTypes(recipe=read_recipe(args.recipe))
    ours = convert(
        args.checkpoint,
        imatrix=matrix,
        tensor_types=types,
        out=args.folder / "edge.gguf",
        force=True,
    ).path
    theirs = args.folder / "llama.gguf"
    options = ["--tensor-type-file", args.recipe, "--imatrix", matrix]
    with (args.folder / "llama-quantize.log").open("wb") as log:
        subprocess.run([program, *options, base, theirs, "Q4_K_M", "1"], check=True, stdout=log, stderr=log)
    found = [
        {
            tensor.name: (tensor.type, os.pread(file.fileno(), tensor.n_bytes, tensor.offset))
            for tensor in tensors
        }
        for path in (ours, theirs)
        for file, tensors in [(path.open("rb"), read_tensors(path))]
    ]
    other = sorted(
        name for name in found[0].keys() | found[1].keys() if found[0].get(name) != found[1].get(name)
    )
    kinds = sorted({kind for kind, _ in found[0].values()})
    print(
        f"{len(found[0])} tensors in {', '.join(kinds)}: {len(other)} differ {' '.join(other[:5])}".rstrip()
    )
    return 1 if other else 0


if __name__ == "__main__":
    sys.exit(main())
