"""What the name of a GGUF says: its quantization type, and whether it is a part of a split model."""

import re
from pathlib import Path

_PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)")  # as llama.cpp names the parts
_TYPE = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d|TQ\d|MXFP4|NVFP4|BF16|F16|F32)\w*)(?=\.gguf$|[-./])", re.IGNORECASE
)


def part_of(name: str) -> tuple[int, int] | None:
    """(number, count) if the name is that of a part of a split model: the second of three is (2, 3)."""
    match = _PART.search(name)
    return None if match is None else (int(match[1]), int(match[2]))


def whole_name(name: str) -> str:
    """The name without the number of its part."""
    return _PART.sub("", name)


def part_name(whole: str, number: int, count: int) -> str:
    """The name of a part, from the name of the whole."""
    return f"{whole.removesuffix('.gguf')}-{number:05}-of-{count:05}.gguf"


def parts(path: Path, count: int) -> list[Path]:
    """The files of a model of `count` parts whose first part is `path`, as llama.cpp names them.

    Only `path` if its name is not that of the first of `count` parts.
    """
    if part_of(path.name) != (1, count):
        return [path]
    whole = whole_name(path.name)
    return [path.with_name(part_name(whole, number, count)) for number in range(1, count + 1)]


def type_in(name: str) -> str | None:
    """The quantization type in the name of a file, as it is written there; None if it names none."""
    found = _TYPE.findall(whole_name(name))
    return found[-1] if found else None


def has_type(name: str, quant: str) -> bool:
    """Whether a file has a type: the whole type in its name, or an ending of the name that contains it."""
    kind, wanted = (type_in(name) or "").lower(), quant.lower()
    ending = re.search(rf"(^|[-._/]){re.escape(wanted)}\.gguf$", name.lower())
    return kind == wanted or bool(kind and ending and wanted.endswith(kind))


def is_type(text: str) -> bool:
    """Whether a text can be a quantization type, also one of published files that edge does not make."""
    return _TYPE.search(f"{text}.gguf") is not None


def before_type(name: str) -> str:
    """The name of a file without its folder, its ending and all that follows its type."""
    found = _TYPE.search(f"{stem(name)}.gguf")
    return stem(name)[: found.start() if found else None]


def stem(name: str) -> str:
    """The name of a file without its folder and its ending."""
    return Path(name).name.removesuffix(".gguf")
