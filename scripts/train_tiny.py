#!/usr/bin/env python3
"""Train models/tiny-terminal from scratch: a small LFM2-MoE that answers terminal tasks with JSON actions.

    python scripts/train_tiny.py --steps 2400 --work build/tiny --out models/tiny-terminal

Needs torch and transformers (the `test` extra). All training data comes from scripts/episodes.py. The script saves its
state every few minutes and resumes from it at the next start. Batch N depends only on N and the
seed.
"""

import argparse
import functools
import json
import math
import os
import random
import shutil
import time
from pathlib import Path

import torch
from episodes import Episode, held_out_episodes, make_episode
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import AutoTokenizer, Lfm2MoeConfig, Lfm2MoeForCausalLM, PreTrainedTokenizerFast

LFM2_REGEX = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s"
)
VOCAB_SIZE = 4096
SPECIAL = [
    "<|pad|>",
    "<|startoftext|>",
    "<|endoftext|>",
    "<|fim_pre|>",
    "<|fim_mid|>",
    "<|fim_suf|>",
    "<|im_start|>",
    "<|im_end|>",
]
SPECIAL += ["<|tool_call_start|>", "<|tool_call_end|>"]
POOL = 16  # number of batches whose rows are sorted by length together
THOUGHT = ["<think>", "</think>"]  # one token each and not special, as in LFM2.5: a decoder shows them
CHAT_TEMPLATE = """{{- bos_token -}}
{%- set keep = preserve_thinking | default(false) -%}
{%- set ns = namespace(last_user=-1) -%}
{%- for message in messages -%}
    {%- if message["role"] == "user" -%}
        {%- set ns.last_user = loop.index0 -%}
    {%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {{- "<|im_start|>" + message["role"] + "\\n" -}}
    {%- if message["role"] == "assistant" -%}
        {%- generation -%}
        {%- set content = message["content"] -%}
        {%- if not keep and loop.index0 < ns.last_user and "</think>" in content -%}
            {%- set content = content.split("</think>")[-1] | trim -%}
        {%- endif -%}
        {{- content + "<|im_end|>" -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- message["content"] + "<|im_end|>" -}}
    {%- endif -%}
    {{- "\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|im_start|>assistant\\n" -}}
{%- endif -%}
"""


def train_tokenizer(folder: Path) -> None:
    """Train a byte-level BPE on training episodes, with LFM2.5's pre-tokenizer, special tokens and template."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LFM2_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    corpus = []
    for _ in range(20_000):
        episode = make_episode(rng, held=False)
        corpus += [m["content"] for m in episode.messages[-1]] + [episode.turns[-1].text()]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(THOUGHT),
        min_frequency=2,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens(THOUGHT)
    bos = SPECIAL[1]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos} $A",
                pair=f"{bos} $A {bos} $B",
                special_tokens=[(bos, tokenizer.token_to_id(bos))],
            ),
        ]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        model_max_length=32768,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)


def model_config(vocab_size: int) -> Lfm2MoeConfig:
    """The target's architecture with four experts. Every width is a multiple of 256, the K-quants' block."""
    return Lfm2MoeConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=512,
        moe_intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_dense_layers=2,
        num_experts=4,
        num_experts_per_tok=2,
        layer_types=["conv", "conv", "full_attention", "conv", "full_attention", "full_attention"],
        max_position_embeddings=32768,
        norm_topk_prob=True,
        use_expert_bias=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=7,
        tie_word_embeddings=True,
    )


def encode(
    tokenizer: PreTrainedTokenizerFast, episode: Episode, rng: random.Random
) -> tuple[list[int], list[int]]:
    """Token ids of an episode, and a mask of the answers. A thinking episode ends at a random turn.

    The template drops the thoughts of past turns, so only the last answer of a thinking episode is trained.
    """
    thinks = episode.turns[0].thought is not None
    last = rng.randrange(len(episode.turns)) if thinks else len(episode.turns) - 1
    messages = [*episode.messages[last], {"role": "assistant", "content": episode.turns[last].text()}]
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = list(encoded["input_ids"]), list(encoded["assistant_masks"])
    if thinks:
        start = len(mask) - 1
        while not mask[start]:
            start -= 1
        while mask[start - 1]:
            start -= 1
        mask[:start] = [0] * start
    return ids, mask


@functools.lru_cache(maxsize=1)
def pool_of(
    tokenizer: PreTrainedTokenizerFast, pool: int, tokens: int, seed: int
) -> list[list[tuple[list[int], list[int]]]]:
    """POOL consecutive batches, sorted by length to reduce padding. Early pools have easier names."""
    rng = random.Random(1_000_003 * (pool + 1) + 7_919 * seed)
    step = pool * POOL
    copying = max(0.0, 0.25 * (1 - step / 600))  # early batches also repeat random tokens, to teach copying
    rows: list[tuple[list[int], list[int]]] = []
    size = 0
    while size < tokens * POOL:
        if rng.random() < copying:
            half = rng.choices(range(len(SPECIAL), len(tokenizer)), k=rng.randint(8, 60))
            ids, mask = [1, *half, *half], [0] * (len(half) + 2) + [1] * (len(half) - 1)
        else:
            ids, mask = encode(tokenizer, make_episode(rng, held=False, hard=min(1.0, step / 900)), rng)
        rows.append((ids, mask))
        size += len(ids)
    rows.sort(key=lambda row: len(row[0]))
    batches: list[list[tuple[list[int], list[int]]]] = []
    filled = tokens
    for row in rows:
        if filled >= tokens and len(batches) < POOL:
            batches.append([])
            filled = 0
        batches[-1].append(row)
        filled += len(row[0])
    rng.shuffle(batches)
    return batches


def batch_of(tokenizer: PreTrainedTokenizerFast, step: int, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """Batch `step`: ids and labels, shape (rows, length). A label of -100 is not trained."""
    batches = pool_of(tokenizer, step // POOL, tokens, seed)
    rows = batches[step % POOL % len(batches)]
    width = max(len(ids) for ids, _ in rows)
    ids_t, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    for i, (ids, mask) in enumerate(rows):
        ids_t[i, : len(ids)] = torch.tensor(ids)
        labels[i, : len(ids)] = torch.where(torch.tensor(mask) > 0, torch.tensor(ids), -100)
    return ids_t, labels


def answer_logits(model: Lfm2MoeForCausalLM, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n, vocabulary) and targets (n,) at the answers' tokens only: the head is the most expensive part."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    wanted = labels[:, 1:] != -100
    return model.lm_head(hidden[wanted]), labels[:, 1:][wanted]


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates of matrices (last two axes), Newton-Schulz as in Jordan et al. 2024."""

    def __init__(
        self, params: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                buffer = state.setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                x = p.grad.lerp(buffer, group["momentum"])
                tall = x.size(-2) > x.size(-1)
                x = x.mT if tall else x
                x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
                for _ in range(5):
                    a = x @ x.mT
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
                x = x.mT if tall else x
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(x, alpha=-group["lr"] * math.sqrt(max(1.0, p.size(-2) / p.size(-1))))


def balance_experts(model: Lfm2MoeForCausalLM, loads: dict[int, Tensor], rate: float = 1e-3) -> None:
    """Move each expert's routing bias against its load. This architecture has no balancing loss term."""
    for index, load in loads.items():
        bias = model.model.layers[index].feed_forward.expert_bias
        bias += rate * torch.sign(load.mean() - load)


def watch_loads(model: Lfm2MoeForCausalLM, loads: dict[int, Tensor]) -> None:
    """Count for each layer how many tokens each expert got in the last batch."""
    for index, layer in enumerate(model.model.layers):
        if hasattr(layer.feed_forward, "gate"):

            def count(
                _module: object, _inputs: object, output: tuple[Tensor, ...], index: int = index
            ) -> None:
                loads[index] = torch.bincount(output[2].flatten(), minlength=model.config.num_experts).float()

            layer.feed_forward.gate.register_forward_hook(count)


@torch.no_grad()
def held_out_figures(model: Lfm2MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int = 60) -> str:
    """Loss, and share of answers that greedy decoding gives exactly, on held-out names."""
    model.eval()
    rng = random.Random(0)
    losses, right, exact, commands = [], [], [], []
    for episode in held_out_episodes(count, seed=99):
        ids, mask = encode(tokenizer, episode, rng)
        labels = torch.where(torch.tensor([mask]) > 0, torch.tensor([ids]), -100)
        logits, targets = answer_logits(model, torch.tensor([ids]), labels)
        losses.append(torch.nn.functional.cross_entropy(logits, targets).item())
        hits = logits.argmax(-1) == targets
        right.append(hits.float().mean().item())
        exact.append(float(hits.all()))
        text = tokenizer.convert_ids_to_tokens(targets.tolist())
        inside = [any("commands" in t for t in text[:i]) for i in range(len(text))]
        commands.append(float(hits[torch.tensor(inside)].all()))
    model.train()
    figures = {"loss": losses, "tokens": right, "answers": exact, "commands": commands}
    return "held-out " + " ".join(
        f"{name} {sum(values) / len(values):.4f}" for name, values in figures.items()
    )


def save_checkpoint(model: Lfm2MoeForCausalLM, tokenizer_folder: Path, out: Path) -> None:
    """Write a standard Hugging Face folder, in bf16."""
    out.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    rounded = Lfm2MoeForCausalLM(model.config)
    rounded.load_state_dict(state)
    rounded.to(torch.bfloat16).save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tokenizer_folder / name).exists():
            shutil.copy(tokenizer_folder / name, out / name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--tokens", type=int, default=3072, help="tokens in a batch")
    parser.add_argument(
        "--lr", type=float, default=0.02, help="learning rate of the matrices; the other weights use a tenth"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and of the batches")
    parser.add_argument("--work", type=Path, default=Path("build/tiny"), help="folder for the saved state")
    parser.add_argument("--out", type=Path, default=Path("models/tiny-terminal"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "tokenizer.json").exists():
        train_tokenizer(args.work)
    tokenizer = AutoTokenizer.from_pretrained(args.work)
    torch.manual_seed(args.seed)
    model = Lfm2MoeForCausalLM(model_config(len(tokenizer)))
    loads: dict[int, Tensor] = {}
    watch_loads(model, loads)
    matrices = [
        p
        for n, p in model.named_parameters()
        if p.ndim >= 2 and "embed" not in n and "conv.conv" not in n and ".gate." not in n
    ]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    optimizers = [
        Muon(matrices, args.lr),
        torch.optim.AdamW(others, args.lr / 10, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    state_file, first = args.work / "state.pt", 0
    if state_file.exists():
        state = torch.load(state_file)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = state["step"]
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens, from step {first}",
        flush=True,
    )

    def save(step: int) -> None:
        temporary = args.work / "state.tmp"
        torch.save(
            {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step},
            temporary,
        )
        os.replace(temporary, state_file)

    saved_at = began = time.time()
    seen, recent = 0, []
    for step in range(first, args.steps):
        # Warm up, hold, then decay over the last half.
        scale = min(1.0, (step + 1) / 60, 2 * (1 - step / args.steps) + 0.01)
        for optimizer, base in zip(optimizers, (args.lr, args.lr / 10), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * scale
        ids, labels = batch_of(tokenizer, step, args.tokens, args.seed)
        logits, targets = answer_logits(model, ids, labels)
        loss = torch.nn.functional.cross_entropy(logits, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        balance_experts(model, loads)
        seen += ids.numel()
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            seconds = time.time() - began
            loss_now = sum(recent) / len(recent)
            print(
                f"step {step + 1} loss {loss_now:.4f} {seen / seconds:.0f} tokens/s {seconds:.0f} s",
                flush=True,
            )
            recent = []
        if (step + 1) % 250 == 0:
            print(f"step {step + 1} {held_out_figures(model, tokenizer)}", flush=True)
        if time.time() - saved_at > 240:
            save(step + 1)
            saved_at = time.time()
    save(args.steps)
    save_checkpoint(model, args.work, args.out)
    print(
        json.dumps({"steps": args.steps, "seconds": round(time.time() - began), "tokens": seen}),
        held_out_figures(model, tokenizer, 200),
    )


if __name__ == "__main__":
    main()
