"""Mamba-1 and Falcon Mamba in double precision, in numpy, from the equations.

Hugging Face computes parts of its model in float32 whatever the dtype of the weights, so it cannot tell its
own rounding error. This can, and it runs over long texts: everything but the scan is done for many tokens at
once, and the state is carried from one chunk to the next.

Names and shapes follow the paper (https://arxiv.org/abs/2312.00752), L being the number of tokens.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file


def load_weights(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a Hugging Face folder, sharded or not, as float64."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    tensors = {}
    for name in names:
        tensors.update(load_file(folder / name))
    return {key: value.to(torch.float64).numpy() for key, value in tensors.items()}


def rms_norm(x, eps, weight=1.0):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def silu(x):
    # 1 / (1 + e^-x) without overflow on either side.
    e = np.exp(-np.abs(x))
    return x * np.where(x >= 0, 1, e) / (1 + e)


def softplus(x):
    # torch.nn.functional.softplus: the identity above its threshold.
    return np.where(x > 20, x, np.log1p(np.exp(np.minimum(x, 20))))


class Model:
    """A model and its state: `forward` continues where the last call ended."""

    def __init__(self, folder: Path):
        self.config = json.loads((folder / "config.json").read_text())
        weights = load_weights(folder)
        self.embedding = weights["backbone.embeddings.weight"]  # [vocab, d_model]
        self.head = weights.get("lm_head.weight", self.embedding)  # [vocab, d_model]
        self.norm_f = weights["backbone.norm_f.weight"]  # [d_model]
        self.layers = []
        for index in range(self.config["num_hidden_layers"]):
            prefix = f"backbone.layers.{index}."
            self.layers.append({k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)})
        self.reset()

    def reset(self):
        """An empty state."""
        k, n = self.config["conv_kernel"], self.config["state_size"]
        inner = [layer["mixer.D"].size for layer in self.layers]
        self.conv = [np.zeros((k - 1, d)) for d in inner]  # the last inputs of the convolution
        self.h = [np.zeros((d, n)) for d in inner]

    def forward(self, tokens) -> np.ndarray:
        """The logits [L, vocab] of `tokens` [L]."""
        eps = self.config["layer_norm_epsilon"]
        x = self.embedding[np.asarray(tokens)]  # [L, d_model]
        for index, layer in enumerate(self.layers):
            x = x + self.mixer(index, rms_norm(x, eps, layer["norm.weight"]))
        return rms_norm(x, eps, self.norm_f) @ self.head.T

    def mixer(self, index, u):
        """The mixer of one layer over the normalised residual u [L, d_model]."""
        w = {k.removeprefix("mixer."): v for k, v in self.layers[index].items()}
        d_inner, n = w["A_log"].shape
        rank = w["dt_proj.weight"].shape[1]
        xz = u @ w["in_proj.weight"].T + w.get("in_proj.bias", 0)
        x, z = xz[:, :d_inner], xz[:, d_inner:]
        x = silu(self.conv1d(index, x, w["conv1d.weight"][:, 0], w.get("conv1d.bias", 0)))
        dt, B, C = np.split(x @ w["x_proj.weight"].T, [rank, rank + n], axis=-1)
        if self.config["model_type"] == "falcon_mamba":
            eps = self.config["mixer_rms_eps"]
            dt, B, C = rms_norm(dt, eps), rms_norm(B, eps), rms_norm(C, eps)
        dt = softplus(dt @ w["dt_proj.weight"].T + w["dt_proj.bias"])
        y = self.scan(index, x, dt, -np.exp(w["A_log"]), B, C) + x * w["D"]
        return (y * silu(z)) @ w["out_proj.weight"].T + w.get("out_proj.bias", 0)

    def conv1d(self, index, x, weight, bias):
        """The causal depthwise convolution of x [L, d_inner] by weight [d_inner, d_conv]."""
        length, taps = x.shape[0], weight.shape[1]
        past = np.concatenate([self.conv[index], x])  # [d_conv - 1 + L, d_inner]
        self.conv[index] = past[length:]
        return sum(past[k : k + length] * weight[:, k] for k in range(taps)) + bias

    def scan(self, index, x, dt, A, B, C):
        """h = exp(dt A) h + dt B x, y = C h, token by token."""
        h, y = self.h[index], np.empty_like(x)
        for t in range(x.shape[0]):
            h = np.exp(dt[t, :, None] * A) * h + (dt[t] * x[t])[:, None] * B[t]
            y[t] = h @ C[t]
        self.h[index] = h
        return y
