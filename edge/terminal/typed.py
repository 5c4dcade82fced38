"""The bytes that edge types for a line at the prompt of its shell."""

# C-g, Escape, A, C-e, C-u: empties the shell's line, also in vi mode, which `bind` can set in spite of PROMPT_COMMAND.
# A program or a printed file can ask the terminal for its colour or cursor. tmux types the answer into that line, where
# it would become the beginning of the next command.
_EMPTY_LINE = b"\x07\x1bA\x05\x15"
# C-v: readline then takes the next byte as text. A tab is not a request for file names. The first letter of a line does
# not end the shell, where stty has made it the key for the end of input (eof).
_QUOTE = b"\x16"


def line_keys(text: str, *, anew: bool = False, quoted: bool = False) -> bytes:
    """The bytes for text at a prompt. `anew`: empty the line first. `quoted`: tabs are text in a line that ends."""
    keys = text.encode(errors="replace")
    ends = text[-1:] in ("\n", "\r")
    if quoted and ends:
        keys = keys.replace(b"\t", _QUOTE + b"\t")
    if (anew or (quoted and ends)) and keys[:1] > b" " and keys[:1] != b"\x7f":
        keys = _QUOTE + keys
    return (_EMPTY_LINE if anew else b"") + keys
