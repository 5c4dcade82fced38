"""The space that a SentencePiece-like tokenizer puts before a text.

llama.cpp has one switch (tokenizer.ggml.add_space_prefix): a space before the text and after each special token, or
none. A Metaspace of the tokenizers package adds none where a space is there already, and with the scheme `first` only
at the begin of the whole text. So the two agree on some texts only. edge sets the switch so that they agree on the
prompts that the chat template writes. Sources: llama.cpp's src/llama-vocab.cpp (tokenize), tokenizers'
pre_tokenizers/metaspace.rs.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edge.conversion.tokenizer_json import Step, TokenizerJson, parts
from edge.errors import PromptError
from edge.prompt import render_chat_template

Scheme = Literal["never", "exact", "always", "first"]

# SentencePiece's own rule beside a Metaspace: a text that begins with a space gets one more.
ONE_MORE: Step = {"type": "Replace", "pattern": {"Regex": r"\A▁"}, "content": "▁▁"}
_BLANKS = (" ", "▁")
_CHATS = (("user",), ("system", "user"), ("user", "assistant", "user"))
_NOTES = {
    ("always", True): "where a text, or what follows a special token, begins with a space, it adds one more",
    (
        "always",
        False,
    ): "where a text, or what follows a special token, does not begin with a space, it adds none",
    ("first", True): "it adds a space after each special token too, and where a text begins with a space",
    ("first", False): "it adds none before a text that does not begin with a special token or a space",
}


@dataclass(frozen=True)
class SpacePrefix:
    """`adds`: the switch of llama.cpp. `special`: the texts of the added tokens.

    `prompts`: texts of the chat template that must have equal tokens.
    """

    scheme: Scheme
    adds: bool
    special: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def agrees(self, text: str) -> bool:
        """Whether llama.cpp adds the same spaces to a text as the tokenizers package."""
        return self.comparable(text) == text

    def comparable(self, text: str) -> str:
        """The text, changed so that llama.cpp and the tokenizers package add the same spaces to it."""
        if self.scheme in ("never", "exact"):
            return text
        pieces, end = [], 0
        for match in self._find(text):
            pieces += [self._fitted(text[end : match.start()], end), match[0]]
            end = match.end()
        return "".join([*pieces, self._fitted(text[end:], end)])

    def _find(self, text: str) -> Iterator[re.Match[str]]:
        longest = sorted(filter(None, self.special), key=len, reverse=True)
        return re.finditer("|".join(map(re.escape, longest)), text) if longest else iter(())

    def _fitted(self, part: str, begin: int) -> str:
        """A text between two special tokens with the blanks for which both do the same."""
        allowed = self.scheme == "always" or begin == 0
        blank = part.startswith(_BLANKS)
        if not part or (allowed and not blank) == self.adds:
            return part
        if not self.adds:
            return " " + part
        return part.lstrip("".join(_BLANKS)) if allowed else ""


def scheme(stored: TokenizerJson) -> Scheme:
    """Where the tokenizer adds a space. `exact`: everywhere where llama.cpp does if it adds spaces."""
    normalizers = parts(stored.get("normalizer") or Step(), "normalizers")
    if any(step.get("type") == "Prepend" for step in normalizers):
        return "exact"
    for step in parts(stored.get("pre_tokenizer") or Step(), "pretokenizers"):
        if step.get("type") == "Metaspace":
            found = step.get("prepend_scheme", "always")
            if found == "always":
                return "exact" if ONE_MORE in normalizers else "always"
            return "first" if found == "first" else "never"
    return "never"


def choose(
    stored: TokenizerJson,
    template: str | None,
    tokens: dict[str, str],
    special: Sequence[str],
) -> SpacePrefix:
    """The switch for a tokenizer. `special`: the texts of all added tokens.

    `tokens`: the special tokens that the template knows by name.
    Of the two values edge takes the one that is right for more of the prompts that the template writes.
    """
    found = scheme(stored)
    if found in ("never", "exact"):
        return SpacePrefix(found, found == "exact")
    usual = found == "always"
    prompts = list(chat_prompts(template, tokens))
    equal = {
        adds: [text for text in prompts if SpacePrefix(found, adds, tuple(special)).agrees(text)]
        for adds in (usual, not usual)
    }
    adds = max(equal, key=lambda value: len(equal[value]))
    # A prompt that begins with the BOS and differs is an error of the check.
    bos = tokens.get("bos_token")
    other = [text for text in prompts if text not in equal[adds] and not (bos and text.startswith(bos))]
    notes = [
        f"llama.cpp does not add spaces as this tokenizer does (Metaspace, {found}): {_NOTES[found, adds]}"
    ]
    if other:
        notes.append(
            f"{len(other)} of {len(prompts)} prompts that the chat template writes have other tokens in llama.cpp, "
            "because of that space"
        )
    checked = tuple(text for text in prompts if text not in other)
    return SpacePrefix(found, adds, tuple(special), checked, tuple(notes))


def chat_prompts(template: str | None, tokens: dict[str, str]) -> Iterator[str]:
    """What the template writes for some short chats; not those that it refuses. `tokens`: as for `choose`."""
    if template is None or not template.strip():
        return
    further: dict[str, Any] = {
        name: text for name, text in tokens.items() if name not in ("bos_token", "eos_token")
    }
    for roles in _CHATS:
        try:
            yield render_chat_template(
                [{"role": role, "content": "ls"} for role in roles],
                template=template,
                bos_token=tokens.get("bos_token"),
                eos_token=tokens.get("eos_token"),
                **further,
            )
        except PromptError:
            continue
