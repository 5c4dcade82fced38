"""What the tokenizer alone answers: the token ids of a text or a chat, and the text of token ids."""

from collections.abc import Mapping
from typing import Any

from edge.serve.prepare import chat_ids, prompt_ids
from edge.serve.request import BadRequestError, read_chat
from edge.serve.state import Server


def tokenize(server: Server, body: Mapping[str, Any]) -> object:
    """The token ids of `messages` with the chat template, or of a text: vLLM calls it `prompt`, llama-server `content`.

    `add_special` or `add_special_tokens`: with the BOS that the model file asks for. `with_pieces`: each token with its
    text, as in llama-server; `return_token_strs`: the texts beside the ids, as in vLLM. Raises BadRequestError.
    """
    for name in ("add_special", "add_special_tokens", "with_pieces", "return_token_strs"):
        if not isinstance(body.get(name, False), bool | None):
            raise BadRequestError(f"{name} must be true or false", name)
    given = [name for name in ("messages", "prompt", "content") if body.get(name) is not None]
    if len(given) != 1:
        raise BadRequestError("give one of messages, prompt and content", given[1] if given else "prompt")
    vocabulary = server.model.runner.vocabulary
    if given[0] == "messages":
        ids = chat_ids(server, read_chat(body, "text"))
    elif not isinstance(text := body[given[0]], str):
        raise BadRequestError(f"{given[0]} must be a text", given[0])
    else:
        ids = prompt_ids(server, text, given[0])
        if body.get("add_special") or body.get("add_special_tokens"):
            ids = vocabulary.encode(text, ends=True)
    found: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": server.context}
    texts = [vocabulary.spelling(token).decode(errors="replace") for token in ids]
    if body.get("with_pieces"):
        found["tokens"] = [{"id": token, "piece": text} for token, text in zip(ids, texts, strict=True)]
    if body.get("return_token_strs"):
        found["token_strs"] = texts
    return found


def detokenize(server: Server, body: Mapping[str, Any]) -> object:
    """The text of `tokens`, under the names of vLLM and of llama-server. Raises BadRequestError."""
    tokens = body.get("tokens")
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise BadRequestError("tokens must be a list of token ids", "tokens")
    ids = prompt_ids(server, tokens, "tokens")
    vocabulary = server.model.runner.vocabulary
    text = b"".join(map(vocabulary.spelling, ids)).decode(errors="replace")
    return {"prompt": text, "content": text}


def embed(server: Server, body: Mapping[str, Any]) -> object:
    """Refuses embeddings clearly. Raises BadRequestError."""
    raise BadRequestError(
        "edge does not make embeddings: the model that it serves writes text; use another server for embeddings",
        code="unsupported",
    )
