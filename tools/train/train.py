"""Trains a tiny Mamba-1 or Falcon Mamba language model on plain text with a CPU.

    python train.py OUT --text FILE... --arch falcon_mamba --d-model 256 --layers 6 --vocab 4096 --minutes 80

OUT becomes a Hugging Face folder, saved every 500 steps. Each FILE is one document; the last 2% of each, by
characters, is held out, for the tokenizer too. README.md has the recipes of the bundled models.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model import Model, make_config

END_OF_TEXT = "<|endoftext|>"
HELD_OUT = 0.02
WINDOW = 512  # tokens, for the held-out loss
WARM_UP = 200  # steps


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("out", type=Path, help="the folder to make")
    add("--text", nargs="+", required=True, metavar="FILE", help="UTF-8 texts, one document each")
    add("--arch", default="falcon_mamba", choices=["mamba", "falcon_mamba"])
    add("--d-model", type=int, default=256, help="width of the residual stream (256)")
    add("--layers", type=int, default=6, help="(6)")
    add("--vocab", type=int, default=4096, help="tokens of the byte-level BPE, at least 257 (4096)")
    add("--minutes", type=float, default=90, help="training time; the learning rate falls over it (90)")
    add("--batch", type=int, default=16, help="sequences a step (16)")
    add("--len", type=int, default=256, help="tokens a sequence (256)")
    add("--lr", type=float, default=2e-3, help="peak learning rate (2e-3)")
    add("--dropout", type=float, default=0.1, help="on the embedding and on each layer's output (0.1)")
    add("--bf16", action="store_true", help="matrix products in bfloat16")
    add("--weights", default="float32", choices=["float32", "bfloat16"], help="type of the saved weights (float32)")
    add("--threads", type=int, default=2, help="(2)")
    return parser.parse_args()


def split_texts(files) -> tuple[list[str], list[str]]:
    """The texts to train on and those held out."""
    texts = [Path(file).read_text(encoding="utf-8") for file in files]
    cuts = [int(len(text) * (1 - HELD_OUT)) for text in texts]
    return [t[:c] for t, c in zip(texts, cuts)], [t[c:] for t, c in zip(texts, cuts)]


def train_tokenizer(texts, vocab) -> Tokenizer:
    """A byte-level BPE, as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer, texts) -> torch.Tensor:
    """The tokens of all texts, each after an end-of-text token (0)."""
    parts = [ids for text in texts for ids in ([0], tokenizer.encode(text).ids)]
    return torch.from_numpy(np.concatenate([np.array(ids, dtype=np.int64) for ids in parts]))


def write_json(path: Path, value: dict):
    path.write_text(json.dumps(value, indent=1))


def write_folder(out: Path, tokenizer, config):
    """Everything but the weights."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "clean_up_tokenization_spaces": False,
        },
    )
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0})


def save_weights(out: Path, model, dtype):
    tensors = {name: t.detach().to(dtype, copy=True).contiguous() for name, t in model.state_dict().items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def held_out_loss(model, tokens) -> float:
    """The mean loss a token over whole windows, each from an empty state."""
    model.eval()
    total = count = 0
    windows = (len(tokens) - 1) // WINDOW
    for first in range(0, windows, 8):
        rows = range(first, min(windows, first + 8))
        x = torch.stack([tokens[row * WINDOW : (row + 1) * WINDOW + 1] for row in rows])
        logits, targets = model(x[:, :-1]), x[:, 1:]
        total += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
        count += targets.numel()
    model.train()
    return total / count


def make_optimizer(model, lr):
    """AdamW; only matrices decay, and A_log is not one of them."""
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and "A_log" not in name
        (decayed if is_matrix else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))


def learning_rate(peak, step, done) -> float:
    """A linear start, then a cosine over the time (`done` from 0 to 1) down to 2% of the peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return peak * min(1, (step + 1) / WARM_UP) * (cosine * 0.98 + 0.02)


def train_step(model, optimizer, tokens, args) -> float:
    """One step on random places of the text; returns its loss a token."""
    starts = torch.randint(0, len(tokens) - args.len - 1, (args.batch,))
    x = torch.stack([tokens[start : start + args.len + 1] for start in starts])
    with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
        logits = model(x[:, :-1], args.dropout)
    loss = F.cross_entropy(logits.float().flatten(0, 1), x[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def train(model, train_tokens, held_tokens, held_bytes, args):
    """Trains for the time given, saving and reporting now and then."""
    optimizer = make_optimizer(model, args.lr)
    dtype = getattr(torch, args.weights)
    bits_a_byte = (len(held_tokens) - 1) / held_bytes / math.log(2)
    start, step, average = time.time(), 0, None

    def report(label):
        held = held_out_loss(model, held_tokens)
        save_weights(args.out, model, dtype)
        seen, seconds = step * args.batch * args.len, time.time() - start
        print(f"{label} {step} seen {seen / 1e6:.2f}M train {average:.4f} held {held:.4f} perplexity "
              f"{math.exp(held):.3f} bits/byte {held * bits_a_byte:.4f} tok/s {seen / seconds:.0f}", flush=True)

    while (done := (time.time() - start) / (args.minutes * 60)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args.lr, step, done)
        loss = train_step(model, optimizer, train_tokens, args)
        average = loss if average is None else 0.98 * average + 0.02 * loss
        step += 1
        if step in (5, 50) or step % 500 == 0:
            report("step")
    report("final step")


def main():
    args = parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    train_texts, held_texts = split_texts(args.text)
    tokenizer = train_tokenizer(train_texts, args.vocab)
    config = make_config(args.arch, args.d_model, args.layers, args.vocab)
    config["torch_dtype"] = args.weights
    write_folder(args.out, tokenizer, config)
    train_tokens, held_tokens = encode(tokenizer, train_texts), encode(tokenizer, held_texts)
    held_bytes = sum(len(text.encode()) for text in held_texts)
    model = Model(config)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, {len(train_tokens)} tokens, {len(held_tokens)} held out", flush=True)
    train(model, train_tokens, held_tokens, held_bytes, args)


if __name__ == "__main__":
    main()
