"""Check that llama.cpp tokenizes text as the checkpoint's tokenizer does."""

from pathlib import Path

from tokenizers import Tokenizer

from edge.conversion.space_prefix import SpacePrefix
from edge.errors import ConversionError, ModelFileError
from edge.llama.vocabulary import file_vocabulary

# Terminal output, code, Korean and other scripts, emoji, long runs of spaces and newlines.
PROBE = (
    "root@box:~/src# ls -la --color=never | head -n 3\ntotal 48\n"
    "drwxr-xr-x  7 root root   4096 Nov 23 01:05 .\n-rw-r--r--  1 me  wheel  13185 2026-11-23 a_b-c.tar.gz\n"
    "Traceback (most recent call last):\n  File \"<stdin>\", line 10, in <module>\nKeyError: 'x'\n"
    "\x1b[31merror\x1b[0m: 100% (3/17) 0x7fffDEAD 1,234.5678e-9 12345678901234567890\r\n\r\n"
    "def f(x):\n    if x:\n        return {'a': [1, 2.5], \"b\": None}\n\n\n"
    "\tfor i in range(10):\n\t\tprint(i)  # tab\n"
    '{"analysis": "it\'s done, I\'LL go; we\'ve", "commands": [{"keystrokes": "grep -rn \'foo\' .\\n"}]}\n'
    "터미널에서 현재 디렉터리를 확인하고 파이썬 파일을 찾으세요. 한글 ㅋㅋㅋ 123개\n"
    "日本語のテキスト、中文字符，Ελληνικά Кириллица عربي עברית हिन्दी ไทย naïve café ÅNGSTRÖM\n"
    "😀👩‍👩‍👧‍👦🇰🇷 ✅ → ≤ ½ ² № … “quoted” — dash\u00a0nbsp\u3000wide\n"
    f"a{' ' * 40}b{chr(10) * 20}c \n \n \n \n{chr(9) * 9}d   \n  \n e{' ' * 300}\n"
    "sed -i 's/\\(foo\\)/\\1bar/g' ./*.py && git commit -m \"fix: #42\" || exit $?; VAR=${HOME:-/tmp}  \n"
)
PROBE_LINES = PROBE.splitlines(keepends=True)

_MOST = 10_000  # added tokens, and pairs of them, that are compared: Gemma 3 has 6,415
_GROUP = 100  # tokens in one text
_LONGEST_OVERLAP = 64  # characters
_SAME_BEGIN = 20  # tokens with the same beginning that are tried after a token


def check_tokenization(
    gguf: Path,
    tokenizer: Tokenizer,
    add_special: bool,
    space: SpacePrefix | None = None,
    where: Path | None = None,
) -> None:
    """Compare llama.cpp's tokenization of PROBE and of the added tokens with that of the tokenizers package.

    `gguf` needs a header only. `tokenizer`: the checkpoint's, as transformers assembles it.
    `add_special` also compares the special tokens that are added around a text.
    `space`: of a SentencePiece-like tokenizer; the texts are then those to which both add the same spaces.
    Raises ConversionError that shows the first difference, for the file `where` (else `gguf`).
    """
    space = space or SpacePrefix("never", False)
    try:
        with file_vocabulary(gguf, trusted=True) as vocabulary:  # edge has just written it
            texts = (*PROBE_LINES, PROBE, *_added_texts(tokenizer, vocabulary.n_vocab))
            for text in (*map(space.comparable, texts), *space.prompts):
                wanted = tokenizer.encode(text, add_special_tokens=False).ids
                _compare(where or gguf, tokenizer, wanted, vocabulary.encode(text))
            if add_special:
                text = "a b" if space.adds else " a b"
                _compare(
                    where or gguf, tokenizer, tokenizer.encode(text).ids, vocabulary.encode(text, ends=True)
                )
    except ModelFileError as error:
        raise ConversionError(str(error)) from None


def _added_texts(tokenizer: Tokenizer, rows: int) -> list[str]:
    """Texts with the added tokens: first those with flags, then pairs that overlap, then the others.

    A token whose id is `rows` or larger is not in the GGUF.

    A token that takes spaces beside it (lstrip, rstrip) or stands for a whole word only (single_word) is none of these
    for llama.cpp. Where two tokens overlap, tokenizers takes the one that begins first, llama.cpp the longer one.
    """
    tokens = [token for i, token in tokenizer.get_added_tokens_decoder().items() if i < rows]
    flagged = [token.content for token in tokens if token.lstrip or token.rstrip or token.single_word]
    contents = [token.content for token in tokens if token.content]
    # The tokens of a fine-tune come last.
    ordered = list(dict.fromkeys([*flagged, *contents[-_MOST // 2 :], *contents]))[:_MOST]
    spelled = [f"{text}word {text}\n" for text in ordered]
    groups = ["".join(spelled[first : first + _GROUP]) for first in range(0, len(spelled), _GROUP)]
    texts = [*spelled[: len(flagged)], *_overlaps(contents), *groups]
    if tokenizer.normalizer is not None and '"▁"' in str(tokenizer.normalizer):
        # Gemma's runs of spaces: text contains spaces there, and llama.cpp does not read ▁ as a space
        texts = [text.replace("▁", " ") for text in texts]
    return texts


def _overlaps(tokens: list[str]) -> list[str]:
    """Texts in which one token ends with the beginning of another: `ab_c` and `b_c_d` give `ab_c_d`.

    Of many with the same beginning, the longest are tried: llama.cpp takes them before the one that begins first. The
    tokens of a fine-tune come last in the list, and first here.
    """
    begins: dict[str, list[str]] = {}
    for token in sorted(tokens, key=lambda token: len(token.encode()), reverse=True):
        for n in range(1, min(len(token), _LONGEST_OVERLAP)):
            others = begins.setdefault(token[:n], [])
            if len(others) < _SAME_BEGIN:
                others.append(token)
    texts: dict[str, None] = {}
    for token in reversed(tokens):
        for n in range(1, min(len(token), _LONGEST_OVERLAP)):
            for other in begins.get(token[-n:], ()):
                texts[f"{token}{other[n:]} "] = None
                if len(texts) >= _MOST:
                    return list(texts)
    return list(texts)


def _compare(where: Path, tokenizer: Tokenizer, wanted: list[int], got: list[int]) -> None:
    if wanted == got:
        return
    at = next(
        (i for i, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b), min(len(wanted), len(got))
    )
    before = tokenizer.decode(wanted[max(0, at - 8) : at], skip_special_tokens=False)
    texts = [[tokenizer.id_to_token(i) for i in ids[at : at + 4]] for ids in (wanted, got)]
    raise ConversionError(
        f"{where}: llama.cpp tokenizes differently after {before!r}: tokenizers gives {texts[0]}, "
        f"llama.cpp {texts[1]}; --no-check skips this check"
    )
