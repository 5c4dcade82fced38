#!/usr/bin/env python3
"""Train the LoRA adapter of edge's default model on episodes made from kinds/*.toml.

    python tests/helpers/make_smollm2.py build/smollm2
    python scripts/default_model/train.py --base build/smollm2 --work build/default --steps 3000

Only adapter weights get gradients; the loss is on the answers alone. The script saves its state every ten minutes and
when it is stopped with Ctrl-C or SIGTERM, and goes on from there at the next start. Batch N depends only on N and the
kinds. WORK/curve.jsonl gets a line for each measurement, WORK/adapter is the adapter in PEFT's format. Without a state,
--adapter and --first start from a GGUF adapter of this base, at the batch of that number, with a new optimizer.
"""

import argparse
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from examples import Episode, make_episode
from kinds import Kind, read_kinds
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from edge.prompt import PromptSource, prompt_source, render_prompt

RANK = 16
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GGUF_NAMES = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
POOL = 24  # number of batches whose episodes are sorted by length together
LONGEST = 640  # tokens of an episode; a longer one is left out
HELD = 120  # number of held-out episodes in a measurement

Row = tuple[list[int], list[bool]]


@dataclass(frozen=True)
class Data:
    """What turns an episode's number into token ids."""

    kinds: list[Kind]
    source: PromptSource
    tokenizer: Tokenizer

    def row(self, episode: Episode) -> Row:
        """Token ids of an episode, and which of them belong to an answer."""
        ids: list[int] = []
        mask: list[bool] = []
        written = ""
        for index, message in enumerate(episode.messages):
            if message["role"] != "assistant":
                continue
            prompt = render_prompt(episode.messages[:index], self.source).text
            answer = message["content"] + (self.source.eos_token or "")
            for text, trained in ((prompt[len(written) :], False), (answer, True)):
                piece = self.tokenizer.encode(text, add_special_tokens=False).ids
                ids += piece
                mask += [trained] * len(piece)
            written = prompt + answer
        return ids, mask

    def rows(self, first: int, count: int, held: bool = False) -> list[Row]:
        made = (self.row(make_episode(self.kinds, first + index, held=held)) for index in range(count))
        return [row for row in made if len(row[0]) <= LONGEST]


def pool_of(data: Data, pool: int, size: int) -> list[list[Row]]:
    """POOL batches of about `size` tokens, sorted by length to reduce padding, in random order."""
    number, rows, tokens = pool * 10_000, [], 0
    while tokens < size * POOL:
        for row in data.rows(number, 16):
            rows.append(row)
            tokens += len(row[0])
        number += 16
    rows.sort(key=lambda row: len(row[0]))
    made: list[list[Row]] = []
    filled = 0
    for row in rows:
        if len(made) * tokens / POOL <= filled and len(made) < POOL:
            made.append([])
        made[-1].append(row)
        filled += len(row[0])
    random.Random(pool).shuffle(made)
    return made


def batches(data: Data, first: int, size: int) -> Iterator[list[Row]]:
    """Batches from number `first` on. A thread makes the next ones: its commands wait for their sandboxes."""
    pool, skip = divmod(first, POOL)
    with ThreadPoolExecutor(1) as maker:
        coming = maker.submit(pool_of, data, pool, size)
        while True:
            pool += 1
            made, coming = coming.result(), maker.submit(pool_of, data, pool, size)
            yield from made[skip:]
            skip = 0


def tensors(rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and labels, each (rows, length). A label of -100 is not trained."""
    shape = len(rows), max(len(ids) for ids, _ in rows)
    ids = torch.zeros(shape, dtype=torch.long)
    seen, labels = torch.zeros_like(ids), torch.full(shape, -100)
    for index, (row, mask) in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        seen[index, : len(row)] = 1
        labels[index, : len(row)] = torch.where(torch.tensor(mask), torch.tensor(row), -100)
    return ids, seen, labels


def answer_logits(model: PeftModel, rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (n, vocabulary) in bf16, targets (n,) and rows (n,) of the answers' tokens only."""
    ids, seen, labels = tensors(rows)
    wanted = labels[:, 1:] != -100
    causal = model.get_base_model()
    hidden = causal.model(input_ids=ids, attention_mask=seen, use_cache=False).last_hidden_state[:, :-1]
    logits = causal.lm_head(hidden[wanted])
    places = torch.arange(len(rows)).unsqueeze(1).expand_as(wanted)[wanted]
    return logits, labels[:, 1:][wanted], places


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (n,) of logits (n, vocabulary), computed in float32."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


# In one piece, the float32 logits never exist in memory: a step takes 0.86 of the time.
fused_losses = torch.compile(token_losses, dynamic=True)


@torch.no_grad()
def measured(model: PeftModel, held: list[Row]) -> dict[str, float]:
    """Loss, share of right tokens and of answers without a wrong token, on held-out names (teacher-forced)."""
    model.eval()
    losses, right, exact = [], [], []
    for start in range(0, len(held), 12):
        rows = held[start : start + 12]
        logits, targets, places = answer_logits(model, rows)
        hits = logits.argmax(-1) == targets
        losses += token_losses(logits, targets).tolist()
        right += hits.tolist()
        exact += [bool(hits[places == index].all()) for index in range(len(rows))]
    model.train()
    return {
        "held_loss": sum(losses) / len(losses),
        "held_tokens": sum(right) / len(right),
        "held_answers": sum(exact) / len(exact),
    }


def new_model(base: Path) -> PeftModel:
    """The base with a new adapter, all in bf16: the optimizer holds the adapter in float32."""
    torch.manual_seed(1)
    # For these short rows, plain attention is faster on a CPU than torch's fused one.
    causal = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, attn_implementation="eager")
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=MODULES)
    model = get_peft_model(causal, config, autocast_adapter_dtype=False)
    for layer in causal.model.layers:
        layer.compile(dynamic=True)  # about a minute; then a step takes half the time
    return model


@torch.no_grad()
def read_adapter(model: PeftModel, path: Path) -> None:
    """Put a GGUF adapter's matrices into the model. llama.cpp has the rows of queries and keys in another order."""
    from gguf import GGUFReader

    from edge.formats.gguf import read_tensors

    read_tensors(path)  # gguf's reader can loop without end at a damaged header
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in GGUFReader(path).tensors}
    config = model.get_base_model().config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    names = dict(zip(MODULES, GGUF_NAMES, strict=True))
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        layer = name.split(".layers.")[1].split(".")[0]
        module = next(module for module in MODULES if f".{module}." in name)
        half = "lora_a" if "lora_A" in name else "lora_b"
        found = tensors.pop(f"blk.{layer}.{names[module]}.weight.{half}")
        if half == "lora_b" and module in heads:
            rows, rank = found.shape
            found = found.reshape(heads[module], rows // heads[module] // 2, 2, rank).swapaxes(1, 2)
        weight.copy_(found.reshape(weight.shape))
    if tensors:
        raise SystemExit(f"{path}: has tensors that this training has not, such as {next(iter(tensors))}")


class Optimizer:
    """AdamW on float32 copies of the adapter's bf16 weights. B matrices learn `ratio` times faster than A matrices
    (Hayou et al. 2024, LoRA+)."""

    def __init__(self, model: PeftModel, rate: float, ratio: float) -> None:
        named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        self.weights = [value for _, value in named]
        self.copies = [value.detach().float() for value in self.weights]
        groups = [
            {
                "params": [
                    copy
                    for (name, _), copy in zip(named, self.copies, strict=True)
                    if ("lora_B" in name) == is_b
                ],
                "lr": lr,
                "full": lr,
            }
            for is_b, lr in ((False, rate), (True, rate * ratio))
        ]
        self.adam = torch.optim.AdamW(groups, weight_decay=0.0)

    def step(self, scale: float) -> None:
        """One step at this share of the full rate. Clips the gradients to a norm of 1, and clears them."""
        for group in self.adam.param_groups:
            group["lr"] = group["full"] * scale
        for weight, copy in zip(self.weights, self.copies, strict=True):
            assert weight.grad is not None
            copy.grad = weight.grad.float()
            weight.grad = None
        torch.nn.utils.clip_grad_norm_(self.copies, 1.0)
        self.adam.step()
        self.write()

    def write(self) -> None:
        """Put the copies into the model."""
        with torch.no_grad():
            for weight, copy in zip(self.weights, self.copies, strict=True):
                weight.copy_(copy)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True, help="checkpoint folder of SmolLM2-135M-Instruct")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the state, the curve, the adapter"
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--tokens", type=int, default=1500, help="tokens in a batch")
    parser.add_argument("--rate", type=float, default=4e-4, help="learning rate of the A matrices")
    parser.add_argument("--ratio", type=float, default=4.0, help="learning rate of B by that of A")
    parser.add_argument("--decay", type=float, default=0.4, help="share of the steps in which the rate falls")
    parser.add_argument("--every", type=int, default=200, help="steps between two measurements")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--adapter", type=Path, help="GGUF adapter to start from, if WORK has no state")
    parser.add_argument("--first", type=int, default=0, help="number of the first batch then")
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    kinds = read_kinds()
    tokenizer = Tokenizer.from_file(str(args.base / "tokenizer.json"))
    data = Data(kinds, prompt_source(args.base), tokenizer)
    model = new_model(args.base)
    state_file, first, trained, began = args.work / "state.pt", args.first, 0, 0.0
    if args.adapter and not state_file.exists():
        read_adapter(model, args.adapter)
    optimizer = Optimizer(model, args.rate, args.ratio)
    if state_file.exists():
        state = torch.load(state_file)
        optimizer.adam.load_state_dict(state["adam"])
        for copy, saved_copy in zip(optimizer.copies, state["adapter"], strict=True):
            copy.copy_(saved_copy)
        optimizer.write()
        first, trained, began = state["step"], state["tokens"], state["seconds"]
    held = data.rows(0, HELD, held=True)
    stop = False

    def ask_to_stop(*_signal: object) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGINT, ask_to_stop)
    signal.signal(signal.SIGTERM, ask_to_stop)
    print(f"{len(kinds)} kinds, from step {first} of {args.steps}, {trained:,} tokens so far", flush=True)
    start = saved = time.monotonic()
    recent: list[float] = []
    step = first

    def save() -> None:
        temporary = args.work / "state.tmp"
        torch.save(
            {
                "adapter": optimizer.copies,
                "adam": optimizer.adam.state_dict(),
                "step": step,
                "tokens": trained,
                "seconds": began + time.monotonic() - start,
            },
            temporary,
        )
        os.replace(temporary, state_file)
        model.save_pretrained(args.work / "adapter")

    for rows in batches(data, first, args.tokens):
        if stop or step >= args.steps:
            break
        scale = min(1.0, (step + 1 - args.first) / 30, (1 - step / args.steps) / args.decay + 0.02)
        logits, targets, _ = answer_logits(model, rows)
        loss = fused_losses(logits, targets).mean()
        loss.backward()
        optimizer.step(scale)
        step += 1
        trained += sum(len(ids) for ids, _ in rows)
        recent.append(loss.item())
        if step % 20 == 0 or step % args.every == 0:
            seconds = time.monotonic() - start
            line = {
                "step": step,
                "tokens": trained,
                "seconds": round(began + seconds),
                "loss": sum(recent) / len(recent),
            }
            recent = []
            if step % args.every == 0:
                line |= measured(model, held)
                with (args.work / "curve.jsonl").open("a", encoding="utf-8") as curve:
                    curve.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
        if time.monotonic() - saved > 600:
            save()
            saved = time.monotonic()
    save()
    print(f"{args.work / 'adapter'}: step {step}, {trained:,} tokens", flush=True)


if __name__ == "__main__":
    main()
