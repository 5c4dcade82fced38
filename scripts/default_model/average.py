#!/usr/bin/env python3
"""Write the mean of two adapters of the same training: of each matrix, the mean of both.

    python scripts/default_model/average.py build/default-3050/adapter build/default/adapter --out build/average

Both must come from one training that went on, so that their matrices belong to the same directions. The mean of two
points of a training is often better than each (Wortsman et al. 2022, Model soups).
"""

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("adapters", type=Path, nargs=2, help="folders in PEFT's format")
    parser.add_argument("--out", type=Path, required=True, help="folder for the mean, in the same format")
    args = parser.parse_args()
    first, second = (load_file(folder / WEIGHTS) for folder in args.adapters)
    if first.keys() != second.keys():
        raise SystemExit(f"{args.adapters[1]}: has other tensors than {args.adapters[0]}")
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({name: (first[name].float() + second[name].float()) / 2 for name in first}, args.out / WEIGHTS)
    shutil.copyfile(args.adapters[1] / CONFIG, args.out / CONFIG)


if __name__ == "__main__":
    main()
