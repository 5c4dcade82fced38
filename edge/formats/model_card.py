"""What a GGUF records of the model card of its checkpoint: licence, tags, languages, base models and datasets.

A model card is README.md; its facts are YAML between two lines of `---` (https://huggingface.co/docs/hub/model-cards).
The rules are those of llama.cpp's converter, from its own gguf package: edge checks the text, lets that package read it
and checks the result. A card that cannot be read never stops a conversion: a note says why.
"""

import logging
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import CheckpointError
from edge.formats.stored import read_small

CARD = "README.md"
_MAX_CARD = 1 << 22  # bytes
_MAX_FACTS = 1 << 17  # characters: about a second of work
# Merges of merges grow without end, and no known card has one.
_MERGE = re.compile(r"<<['\"]?\s*:")
# A folder on the machine of whoever trained the model, as peft writes it into a card: not a place for others.
_LOCAL = re.compile(r"(?:base_model:(?:\w+:)?)?(?:[/~\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]|file:)")
_LISTS = ("tags", "pipeline_tag", "languages", "language")
_SOURCES = ("base_model", "base_models", "base_model_sources", "datasets", "dataset", "dataset_sources")
_PARTS = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")


@dataclass(frozen=True)
class CardFacts:
    """The metadata of a GGUF that comes from a model card, with full keys; `notes`: lines for the user."""

    entries: tuple[tuple[str, str | int | list[str]], ...] = ()
    notes: tuple[str, ...] = ()


def read_card(folder: Path) -> CardFacts:
    """The facts of the model card in a checkpoint folder. Nothing without a card; a note if it cannot be read."""
    path = folder / CARD
    try:
        text = read_small(path, _MAX_CARD).decode("utf-8-sig")
    except FileNotFoundError:
        return CardFacts()
    except CheckpointError as error:
        return _unread(str(error))
    except UnicodeDecodeError as error:
        return _unread(f"{path}: byte {error.start} is not UTF-8")
    facts = _front_matter(text)
    if not facts.strip():
        return CardFacts()
    if len(facts) > _MAX_FACTS:
        return _unread(f"{path}: its facts have {len(facts):,} characters; edge reads at most {_MAX_FACTS:,}")
    if _MERGE.search(facts):
        return _unread(f"{path}: its facts have a YAML merge (<<), which edge does not read")
    try:
        return CardFacts(tuple(_entries(_parsed(facts))))
    except Exception as error:  # the YAML package and gguf's rules raise many kinds
        return _unread(f"{path}: its facts cannot be read: {' '.join(str(error).split())[:150]}")


def with_adapter(base: CardFacts, adapter: CardFacts) -> CardFacts:
    """The facts of a merged model: of each kind, those of the adapter's card where it has them, else the base's."""
    own = {_kind(key) for key, _ in adapter.entries}
    kept = [entry for entry in base.entries if _kind(entry[0]) not in own]
    return CardFacts((*adapter.entries, *kept), (*base.notes, *adapter.notes))


def _kind(key: str) -> str:
    """`general.license.name` is of the kind `license`."""
    return key.split(".")[1]


def _unread(problem: str) -> CardFacts:
    return CardFacts(notes=(f"{problem}; the GGUF records no licence, tags or sources from it",))


def _front_matter(text: str) -> str:
    """The facts of a card. As in llama.cpp's converter: they end with the card if no line ends them."""
    lines = [line.rstrip() for line in text.lstrip().splitlines()]
    if lines[:1] != ["---"]:
        return ""
    end = next((i for i, line in enumerate(lines) if i and line in ("---", "...")), len(lines))
    return "\n".join(lines[1:end])


def _parsed(facts: str) -> Mapping[str, Any]:
    """The facts as gguf's converter reads them. Its function takes a folder with a card."""
    from gguf import Metadata

    log = logging.getLogger("metadata")  # gguf's: without a handler, Python prints its lines
    if not log.handlers:
        log.addHandler(logging.NullHandler())
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, CARD).write_text(f"---\n{facts}\n---\n", encoding="utf-8")
        return Metadata.load_model_card(Path(folder))


def _entries(card: Mapping[str, Any]) -> list[tuple[str, str | int | list[str]]]:
    """The entries in the order of llama.cpp's converter."""
    from gguf import Metadata

    plain: dict[str, Any] = {key: _texts(card[key], key) for key in _LISTS if key in card}
    for key in _SOURCES:
        if key in card:
            given = card[key] if isinstance(card[key], list) else [card[key]]
            named = [item if isinstance(item, dict) else text for item in given for text in _named(item)]
            if named or not any(_LOCAL.match(str(item)) for item in given):
                plain[key] = named
    for key in ("license", "license_name", "license_link"):
        plain[key] = ",".join(_texts(card.get(key), key)) or None
    found = Metadata.apply_metadata_heuristic(Metadata(), plain, None, None)
    entries: list[tuple[str, str | int | list[str]]] = [
        (key, value)
        for key, value in (
            ("general.license", found.license),
            ("general.license.name", found.license_name),
            ("general.license.link", found.license_link),
        )
        if value
    ]
    for kind, sources in (("base_model", found.base_models), ("dataset", found.datasets)):
        if sources is None:
            continue
        entries.append((f"general.{kind}.count", len(sources)))
        for i, source in enumerate(sources):
            entries += [
                (f"general.{kind}.{i}.{part}", text)
                for part in _PARTS
                for text in _texts(source.get(part), part)[:1]
            ]
    lists = (("general.tags", found.tags), ("general.languages", found.languages))
    return [*entries, *((key, list(values)) for key, values in lists if values)]


def _named(source: object) -> list[str]:
    """The name of a base model or dataset; of a dictionary of names, something, so that it is taken once.

    None for a folder on the author's machine.
    """
    return [""] if isinstance(source, dict) else _texts(source, "")[:1]


def _texts(value: object, key: str) -> list[str]:
    """The texts in a value of a card: one, or the items of a list. Numbers become texts.

    YAML reads the language code `no` as false.
    """
    found = []
    for item in value if isinstance(value, list) else [value]:
        if item is False and key in ("languages", "language"):
            item = "no"
        if item is None or isinstance(item, bool | list | dict):
            continue
        text = str(item).replace("\0", "").encode("utf-8", "ignore").decode("utf-8").strip()
        local = key in ("", "tags") and _LOCAL.match(text)
        found += [text] if text and not local else []
    return found
