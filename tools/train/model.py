"""Mamba-1 and Falcon Mamba for training on a CPU.

The formula is that of Hugging Face transformers, with a compiled scan (scan.cpp), and the parameters have its
names, so that a saved checkpoint gives the same logits there. Shapes: B batch, L tokens.
"""

import math
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.cpp_extension import load

scan_cpp = load(
    "scan16",
    [str(Path(__file__).resolve().parent / "scan.cpp")],
    extra_cflags=["-O3", "-march=native", "-fno-math-errno", "-fopenmp"],  # -ffast-math breaks its exp
    extra_ldflags=["-fopenmp"],
)


def make_config(arch: str, d_model: int, layers: int, vocab: int) -> dict:
    """The config.json of a model. The state size is the scan's: 16."""
    config = {
        "architectures": ["FalconMambaForCausalLM" if arch == "falcon_mamba" else "MambaForCausalLM"],
        "model_type": arch,
        "vocab_size": vocab,
        "hidden_size": d_model,
        "intermediate_size": 2 * d_model,
        "num_hidden_layers": layers,
        "state_size": 16,
        "conv_kernel": 4,
        "expand": 2,
        "time_step_rank": math.ceil(d_model / 16),
        "use_bias": False,
        "use_conv_bias": True,
        "hidden_act": "silu",
        "layer_norm_epsilon": 1e-5,
        "residual_in_fp32": True,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "torch_dtype": "float32",
    }
    if arch == "falcon_mamba":
        config["mixer_rms_eps"] = 1e-6
    return config


class Scan(torch.autograd.Function):
    """y of the selective scan, without the D term. u, dt: (B, d_inner, L); A: (d_inner, 16); B, C: (B, L, 16)."""

    @staticmethod
    def forward(ctx, u, dt, A, B, C):
        inputs = [t.float().contiguous() for t in (u, dt, A, B, C)]
        ctx.save_for_backward(*inputs)
        return scan_cpp.forward(*inputs)

    @staticmethod
    def backward(ctx, gy):
        return tuple(scan_cpp.backward(gy.float().contiguous(), *ctx.saved_tensors))


def rms_norm(x, eps, weight=None):
    x = x.float()
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return y if weight is None else y * weight


class Norm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return rms_norm(x, self.eps, self.weight)


class Mixer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        d_model, d_inner = config["hidden_size"], config["intermediate_size"]
        d_state, dt_rank = config["state_size"], config["time_step_rank"]
        taps = config["conv_kernel"]
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, taps, groups=d_inner, padding=taps - 1)
        self.x_proj = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, d_state + 1).float()).repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        self.initialise()

    @torch.no_grad()
    def initialise(self):
        """The paper's start for dt: softplus of the bias is spread evenly in logarithm from 0.001 to 0.1."""
        d_model, d_inner = self.config["hidden_size"], self.config["intermediate_size"]
        dt_rank = self.config["time_step_rank"]
        nn.init.uniform_(self.dt_proj.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        low, high = math.log(1e-3), math.log(0.1)
        dt = torch.exp(torch.rand(d_inner) * (high - low) + low).clamp(min=1e-4)
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        nn.init.normal_(self.in_proj.weight, std=0.02 if d_model > 400 else d_model**-0.5 * 0.5)
        depth = math.sqrt(self.config["num_hidden_layers"])
        nn.init.normal_(self.out_proj.weight, std=d_inner**-0.5 / depth * 0.7)

    def forward(self, u):
        """u: (B, L, d_model), normalised."""
        d_state, dt_rank = self.config["state_size"], self.config["time_step_rank"]
        x, z = self.in_proj(u).transpose(1, 2).chunk(2, 1)  # (B, d_inner, L) each
        x = F.silu(self.conv1d(x)[..., : u.shape[1]])
        dt, B, C = self.x_proj(x.transpose(1, 2)).split([dt_rank, d_state, d_state], -1)
        if self.config["model_type"] == "falcon_mamba":
            eps = self.config["mixer_rms_eps"]
            dt, B, C = rms_norm(dt, eps), rms_norm(B, eps), rms_norm(C, eps)
        dt = F.softplus(self.dt_proj(dt).float()).transpose(1, 2)
        y = Scan.apply(x, dt, -torch.exp(self.A_log.float()), B, C)
        y = (y + x.float() * self.D[:, None]) * F.silu(z.float())
        return self.out_proj(y.transpose(1, 2))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm = Norm(config["hidden_size"], config["layer_norm_epsilon"])
        self.mixer = Mixer(config)

    def forward(self, x, dropout):
        return x + F.dropout(self.mixer(self.norm(x)), dropout, self.training)


class Backbone(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embeddings = nn.Embedding(config["vocab_size"], config["hidden_size"])
        nn.init.normal_(self.embeddings.weight, std=0.02)
        self.layers = nn.ModuleList(Block(config) for _ in range(config["num_hidden_layers"]))
        self.norm_f = Norm(config["hidden_size"], config["layer_norm_epsilon"])


class Model(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self, config):
        super().__init__()
        self.backbone = Backbone(config)

    def forward(self, ids, dropout=0.0):
        """The logits (B, L, vocab) of ids (B, L)."""
        backbone = self.backbone
        x = F.dropout(backbone.embeddings(ids), dropout, self.training).float()
        for layer in backbone.layers:
            x = layer(x, dropout)
        return backbone.norm_f(x) @ backbone.embeddings.weight.t()
