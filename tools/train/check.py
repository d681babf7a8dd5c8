"""Checks the compiled scan, and that a trained folder gives the same loss in Hugging Face transformers as here.

    python check.py FOLDER --text FILE [--tokens 512]

The scan and its gradients are compared with plain PyTorch in float64. The losses are those of float32 over the
first tokens of the text's held-out end. Exits with 1 if anything differs.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer

from model import Model, Scan
from train import split_texts

TOLERANCE = 1e-4  # nats a token
SCAN_TOLERANCE = 1e-5  # of the largest element


def plain_scan(u, dt, A, B, C):
    """What Scan computes, token by token."""
    h, ys = torch.zeros(u.shape[0], *A.shape, dtype=u.dtype), []
    for t in range(u.shape[2]):
        h = torch.exp(dt[:, :, t, None] * A) * h + (dt[:, :, t] * u[:, :, t])[..., None] * B[:, t, None]
        ys.append((h * C[:, t, None]).sum(-1))
    return torch.stack(ys, -1)


def scan_error() -> float:
    """The largest error of the scan and of its gradients, as a share of the largest element."""
    torch.manual_seed(0)
    batch, d_inner, length = 2, 5, 40
    u, gy = torch.randn(2, batch, d_inner, length)
    dt, A = 2 * torch.rand(batch, d_inner, length), -16 * torch.rand(d_inner, 16)
    B, C = torch.randn(2, batch, length, 16)
    results = []
    for scan, dtype in ((Scan.apply, torch.float32), (plain_scan, torch.float64)):
        inputs = [t.to(dtype, copy=True).requires_grad_() for t in (u, dt, A, B, C)]
        y = scan(*inputs)
        results.append([y, *torch.autograd.grad(y, inputs, gy.to(dtype))])
    return max(((have - want).abs().max() / want.abs().max()).item() for have, want in zip(*results))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", required=True, help="one of the texts of training")
    parser.add_argument("--tokens", type=int, default=512, help="(512)")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()

    error = scan_error()
    print(f"the scan and its gradients are within {error:.1e} of float64")
    held = split_texts([args.text])[1][0]
    ids = Tokenizer.from_file(str(args.folder / "tokenizer.json")).encode(held).ids[: args.tokens]
    x = torch.tensor([ids])
    ours = Model(json.loads((args.folder / "config.json").read_text())).eval()
    ours.load_state_dict({k: v.float() for k, v in load_file(args.folder / "model.safetensors").items()})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32).eval()
    with torch.no_grad():
        here = F.cross_entropy(ours(x)[0, :-1], x[0, 1:]).item()
        there = F.cross_entropy(theirs(x).logits[0, :-1], x[0, 1:]).item()
    print(f"loss over {len(ids) - 1} tokens: {here:.6f} here, {there:.6f} in transformers {transformers.__version__}")
    return int(error > SCAN_TOLERANCE or abs(here - there) > TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())
