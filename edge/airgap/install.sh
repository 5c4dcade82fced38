#!/bin/sh
# Install edge from this bundle without a network: check every file, then make a virtual environment in this folder.
#
#   sh install.sh [--python PYTHON]     PYTHON: the Python to use, of the bundle's version; default: python3
#
# This Python needs venv and ensurepip (Debian: python3-venv).
set -eu
python=python3
while [ $# -gt 0 ]; do
    case $1 in
        --python) [ $# -gt 1 ] || { echo 'error: --python: give the name of a Python program' >&2; exit 2; }; python=$2; shift 2 ;;
        *) echo "usage: sh install.sh [--python PYTHON]" >&2; exit 2 ;;
    esac
done
CDPATH='' cd -P -- "$(dirname -- "$0")"
command -v "$python" >/dev/null 2>&1 || { echo "error: $python: no such program; name another with --python" >&2; exit 1; }

"$python" -I - <<'CHECK'
import sys

def fail(text):
    print(f"error: {text}", file=sys.stderr)
    sys.exit(1)

if sys.version_info < (3, 11):
    fail(f"{sys.executable} is Python {sys.version.split()[0]}; edge needs 3.11 or newer: name another with --python")
import hashlib, importlib.util, json, os, platform, stat

try:
    with open("manifest.json", "rb") as file:
        data = file.read(5 << 20)
    manifest = json.loads(data)
    machine, files = manifest["machine"], manifest["files"]
    if manifest["version"] != 1:
        fail("manifest.json: has another format than this install.sh; unpack the bundle again")
    here = {
        "implementation": sys.implementation.name,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "system": platform.system(),
        "machine": platform.machine(),
    }
    for name, value in here.items():
        if machine[name] != value:
            fail(f"this bundle is for {name} {machine[name]}, not {value} ({sys.executable}): name another Python with "
                 "--python, or make a bundle on a machine of this kind")
    known = "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", ())
    try:
        glibc = os.confstr("CS_GNU_LIBC_VERSION") if known else None
    except (OSError, ValueError):  # another C library
        glibc = None
    number = lambda text: [int(part) for part in text.split(".")]
    if machine["glibc"] and (glibc is None or number(glibc.split()[-1]) < number(machine["glibc"])):
        fail(f"this bundle needs glibc {machine['glibc']} or newer, this machine has {glibc or 'none'}: make the bundle on "
             "an older system")
    for name in ("venv", "ensurepip"):
        if importlib.util.find_spec(name) is None:
            fail(f"{sys.executable} has no module {name}: install it (Debian: python3-venv)")
    listed = {file["path"] for file in files}
    for name in sorted(os.listdir("wheels")):  # pip uses what it finds there
        if f"wheels/{name}" not in listed:
            fail(f"wheels/{name} is not in the manifest; unpack the bundle again in an empty folder")
    done = 0
    for file in files:
        path = file["path"]
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size != file["size"]:
            fail(f"{path}: is a link, or has another size than in the manifest; fetch the bundle again")
        digest = hashlib.sha256()
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != file["sha256"]:
            fail(f"{path}: is damaged: its SHA-256 differs from the manifest; fetch the bundle again")
        done += file["size"]
except FileNotFoundError as error:
    fail(f"{error.filename}: is missing; unpack the bundle again")
except OSError as error:
    fail(f"{error.filename}: {error.strerror}; unpack the bundle again")
except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
    fail(f"manifest.json: is damaged: {error!r}; fetch the bundle again")
print(f"checked: {len(files)} files, {done / 1e6:,.1f} MB; SHA-256 of the manifest {hashlib.sha256(data).hexdigest()}")
CHECK

if [ -e venv ]; then
    echo "error: $PWD/venv: already exists; remove it to install again" >&2
    exit 1
fi
trap 'status=$?; [ $status -eq 0 ] || rm -rf venv; exit $status' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
echo "installing into $PWD/venv …"
"$python" -I -m venv venv
# No configuration, no index, no cache: pip uses only the wheels here, and checks their SHA-256 again. Python compiles
# each module when it is first used: to compile them all here would take longer than the installation.
PIP_CONFIG_FILE=/dev/null venv/bin/python -I -m pip --isolated --disable-pip-version-check --no-cache-dir \
    install --quiet --no-input --no-index --find-links wheels --no-deps --no-compile --require-hashes \
    --requirement requirements.txt
PIP_CONFIG_FILE=/dev/null venv/bin/python -I -m pip --isolated --disable-pip-version-check check
trap - EXIT INT TERM

echo
venv/bin/edge doctor --offline
echo
echo "Installed. To use it, work in this folder: cd $PWD && venv/bin/edge run 'List the Python files here.'"
