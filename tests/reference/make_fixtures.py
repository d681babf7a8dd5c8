"""Makes tests/fixtures: small random checkpoints, and what Hugging Face transformers computes with them.

    pip install -r tests/reference/requirements.txt
    python tests/reference/make_fixtures.py [NAME...]

Each fixture is a Hugging Face folder with an `expected.safetensors` beside the weights:
    tokens  i32 [64]         logits  f32 [64, vocab]     the logits after each token, from an empty state
    prompt  i32 [any]        greedy  i32 [200]           the greedy continuation of the prompt

Everything comes from the pure PyTorch path in float32 on one CPU thread. A seed is taken only if the continuation
is varied and no step of it is decided by a margin that rounding could turn, so that a test may ask for the same
200 tokens. mamba_f64.py says how far float32 is from the truth; README.md in the fixtures lists it.

What the source of transformers does that its config does not say:
  - B, C and dt of Falcon Mamba are normalised by x * rsqrt(mean(x^2) + mixer_rms_eps), without weights, between
    x_proj and dt_proj, each over its own width (dt_rank or state_size).
  - softplus is the identity above 20; below it is log1p(exp(x)).
  - the state kept between steps holds conv_kernel columns; only the last conv_kernel - 1 matter.
  - several tokens fed on top of a cache start the scan from zero: only single steps may follow the first call.
  - `intermediate_size` is expand * hidden_size unless the file states it, and then the file wins. Some of the
    fixtures, as the real Falcon Mamba 7B, state an `expand` that is wrong.
"""

import json
import math
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from held_out import REPOSITORY, DATA, held_out_text
from mamba_f64 import Model

FIXTURES = REPOSITORY / "tests" / "fixtures"
TOKENS = 64
GREEDY = 200
# A step decided by less than this share of the largest logit could go either way after rounding.
MARGIN = 1e-4
# What a random checkpoint's seed must reach.
SAFE_MARGIN = 1e-3
DISTINCT = 20
# The bundled models repeat themselves under greedy decoding. After plain "My fellow citizens" the larger one meets
# a margin of 2e-5, too thin for a test, and the smaller one says "and then" for ever: these prompts do better.
PROMPTS = {"address-300k": "My fellow citizens:", "address-4m": "My fellow citizens, the whale"}

ARCHITECTURES = {
    "mamba": (transformers.MambaConfig, transformers.MambaForCausalLM),
    "falcon_mamba": (transformers.FalconMambaConfig, transformers.FalconMambaForCausalLM),
}


@dataclass
class Recipe:
    """A random checkpoint. `options` go to the config as they are."""

    name: str
    arch: str
    d_model: int
    d_inner: int
    layers: int
    vocab: int
    d_state: int = 16
    d_conv: int = 4
    dt_rank: int = 4
    tied: bool = True
    dtype: str = "float32"
    shard: str = "1GB"
    prompt: int = 5
    harsh: bool = False
    options: dict = field(default_factory=dict)


RECIPES = [
    Recipe("mamba-even", "mamba", 64, 128, 2, 128),
    Recipe("mamba-odd", "mamba", 40, 88, 3, 101, dt_rank=3),
    Recipe("mamba-bias", "mamba", 33, 70, 2, 101, d_state=4, d_conv=3, dt_rank=5, tied=False, dtype="bfloat16",
           options={"use_bias": True, "layer_norm_epsilon": 1e-3}),
    Recipe("mamba-state1", "mamba", 24, 50, 1, 67, d_state=1, d_conv=2, dt_rank=7, dtype="float16",
           options={"use_conv_bias": False}),
    Recipe("mamba-state24", "mamba", 48, 56, 2, 150, d_state=24, d_conv=8, dt_rank=3, tied=False, prompt=3,
           shard="40KB"),
    Recipe("mamba-conv1", "mamba", 20, 40, 4, 59, d_state=4, d_conv=1, dt_rank=2, prompt=1),
    Recipe("mamba-harsh", "mamba", 64, 96, 2, 101, dt_rank=6, harsh=True),
    Recipe("falcon-even", "falcon_mamba", 64, 128, 2, 128),
    Recipe("falcon-odd", "falcon_mamba", 33, 70, 4, 101, dt_rank=3, tied=False, dtype="bfloat16",
           options={"expand": 16}),
    Recipe("falcon-bias", "falcon_mamba", 40, 88, 2, 101, d_state=4, dt_rank=5, dtype="float16", shard="20KB",
           options={"use_bias": True, "use_conv_bias": False, "mixer_rms_eps": 1e-2}),
    Recipe("falcon-state1", "falcon_mamba", 24, 80, 2, 67, d_state=1, d_conv=2, dt_rank=1,
           options={"mixer_rms_eps": 1e-1}),
    Recipe("falcon-state24", "falcon_mamba", 48, 40, 1, 150, d_state=24, d_conv=8, dt_rank=7, tied=False,
           prompt=3, options={"expand": 16}),
]


def build(recipe: Recipe, seed: int, folder: Path):
    """A random checkpoint in `folder`, rounded to the recipe's dtype, and back from there in float32."""
    config_class, model_class = ARCHITECTURES[recipe.arch]
    config = config_class(
        hidden_size=recipe.d_model, intermediate_size=recipe.d_inner, num_hidden_layers=recipe.layers,
        vocab_size=recipe.vocab, state_size=recipe.d_state, conv_kernel=recipe.d_conv,
        time_step_rank=recipe.dt_rank, tie_word_embeddings=recipe.tied, **recipe.options,
    )
    model = model_class(config)
    randomise(model, recipe, torch.Generator().manual_seed(seed))
    shutil.rmtree(folder, ignore_errors=True)
    model.to(getattr(torch, recipe.dtype)).save_pretrained(folder, max_shard_size=recipe.shard)
    for file in folder.iterdir():
        file.chmod(0o644)
    return load(folder)


def load(folder: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def randomise(model, recipe: Recipe, rng: torch.Generator):
    """Weights with more spread than the defaults, so that every part of a layer shows in the logits."""

    def normal(tensor, std, mean=0.0):
        if tensor is not None:
            tensor.copy_(torch.randn(tensor.shape, generator=rng) * std + mean)

    def uniform(tensor, low, high):
        tensor.copy_(torch.rand(tensor.shape, generator=rng) * (high - low) + low)

    # A tied head favours the token just read; a small embedding lets the layers decide.
    normal(model.backbone.embeddings.weight, 0.3 if recipe.tied else 1.0)
    if not recipe.tied:
        normal(model.lm_head.weight, 1.0)
    normal(model.backbone.norm_f.weight, 0.3, 1.0)
    for layer in model.backbone.layers:
        mixer = layer.mixer
        normal(layer.norm.weight, 0.3, 1.0)
        normal(mixer.in_proj.weight, 1.5 * recipe.d_model**-0.5)
        normal(mixer.in_proj.bias, 0.5)
        normal(mixer.conv1d.weight, recipe.d_conv**-0.5)
        normal(mixer.conv1d.bias, 0.3)
        normal(mixer.x_proj.weight, 1.5 * recipe.d_inner**-0.5)
        normal(mixer.dt_proj.weight, recipe.dt_rank**-0.5)
        # softplus of the bias from 0.001 to 0.5
        uniform(mixer.dt_proj.bias, math.log(math.expm1(1e-3)), math.log(math.expm1(0.5)))
        uniform(mixer.A_log, math.log(0.1), math.log(16))
        normal(mixer.D, 0.5, 1.0)
        normal(mixer.out_proj.weight, 1.5 * recipe.d_inner**-0.5)
        normal(mixer.out_proj.bias, 0.3)
        if recipe.harsh:
            # The ranges of a trained mamba-130m: A to -291143, dt from 3.7e-13 to 14, |y| to 2.8e3.
            uniform(mixer.A_log, -4.0, math.log(291143))
            mixer.A_log[0, -1] = math.log(291143)
            uniform(mixer.dt_proj.bias, -28.6, 8.0)
            mixer.dt_proj.bias[1], mixer.dt_proj.bias[2] = -28.6, 14.0
            mixer.dt_proj.weight[1:3] = 0
            # A few channels are very loud, as in trained models, and little of them is let out.
            loud = slice(3, 7)
            for half in (0, recipe.d_inner):
                mixer.in_proj.weight[half + loud.start : half + loud.stop] *= 20
            mixer.x_proj.weight[:, loud] *= 0.05
            mixer.out_proj.weight[:, loud] *= 0.003


@torch.no_grad()
def logits_of(model, tokens) -> np.ndarray:
    return model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()


@torch.no_grad()
def greedy_of(model, prompt) -> tuple[list[int], float]:
    """The greedy continuation, and its least margin between the two best, as a share of the largest logit."""
    ids, margin = [], math.inf
    out = model(torch.tensor([prompt]), use_cache=True)
    while True:
        last = out.logits[0, -1]
        best = torch.topk(last, 2).values
        margin = min(margin, ((best[0] - best[1]) / last.abs().max()).item())
        ids.append(int(last.argmax()))
        if len(ids) == GREEDY:
            return ids, margin
        out = model(torch.tensor([ids[-1:]]), cache_params=out.cache_params, use_cache=True)


def write_expected(folder: Path, model, tokens, prompt) -> dict:
    """Writes `expected.safetensors`; returns what the table of fixtures says of it."""
    logits = logits_of(model, tokens)
    greedy, margin = greedy_of(model, prompt)
    save_file(
        {
            "tokens": np.array(tokens, np.int32), "logits": logits,
            "prompt": np.array(prompt, np.int32), "greedy": np.array(greedy, np.int32),
        },
        folder / "expected.safetensors",
    )
    return {
        "margin": margin,
        "distinct": len(set(greedy)),
        "max_logit": float(np.abs(logits).max()),
        "logits": logits,
        "greedy": greedy,
    }


def check(result: dict, source: Path, tokens, prompt) -> float:
    """The distance of the logits from float64, which must also continue in the same way."""
    exact = Model(source)
    truth = exact.forward(tokens)
    error = float(np.abs(truth - result["logits"]).max() / np.abs(truth).max())
    assert error < 2e-5, f"{source}: {error}"
    exact.reset()
    last = exact.forward(prompt)[-1]
    for token in result["greedy"]:
        assert int(last.argmax()) == token, f"{source}: the continuation in float64 is another"
        last = exact.forward([token])[-1]
    return error


def make(recipe: Recipe) -> dict:
    folder = FIXTURES / recipe.name
    for seed in range(1, 200):
        model = build(recipe, seed, folder)
        rng = np.random.default_rng(seed)
        tokens = rng.integers(0, recipe.vocab, TOKENS).tolist()
        prompt = rng.integers(0, recipe.vocab, recipe.prompt).tolist()
        result = write_expected(folder, model, tokens, prompt)
        if result["margin"] >= SAFE_MARGIN and result["distinct"] >= DISTINCT:
            break
    else:
        raise SystemExit(f"{recipe.name}: no seed gives a safe and varied continuation")
    error = check(result, folder, tokens, prompt)
    form = recipe.dtype + (f", {len(list(folder.glob('model-*')))} shards" if recipe.shard != "1GB" else "")
    return row(folder, folder, result, error, form, str(seed))


def make_bundled(name: str) -> dict:
    """What a bundled model is expected to compute. Its weights are not copied here."""
    source, folder = DATA / "models" / name, FIXTURES / name
    folder.mkdir(exist_ok=True)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokens = tokenizer.encode(held_out_text()).ids[:TOKENS]
    prompt = tokenizer.encode(PROMPTS[name]).ids
    result = write_expected(folder, load(source), tokens, prompt)
    assert result["margin"] >= MARGIN, f"{name}: margin {result['margin']}"
    return row(source, folder, result, check(result, source, tokens, prompt), "bfloat16, not here", "-")


def row(source: Path, folder: Path, result: dict, error: float, form: str, seed: str) -> dict:
    c = json.loads((source / "config.json").read_text())
    options = [
        "tied" if c["tie_word_embeddings"] else "untied",
        *(["bias"] if c["use_bias"] else []),
        *([] if c["use_conv_bias"] else ["no conv bias"]),
        *([f"norm eps {c['layer_norm_epsilon']:g}"] if c["layer_norm_epsilon"] != 1e-5 else []),
        *([f"mixer eps {c['mixer_rms_eps']:g}"] if c.get("mixer_rms_eps", 1e-6) != 1e-6 else []),
        *(["expand wrong"] if c["expand"] * c["hidden_size"] != c["intermediate_size"] else []),
    ]
    size = sum(f.stat().st_size for f in folder.iterdir())
    line = {
        "fixture": folder.name, "arch": c["model_type"], "d_model": c["hidden_size"],
        "d_inner": c["intermediate_size"], "layers": c["num_hidden_layers"], "vocab": c["vocab_size"],
        "d_state": c["state_size"], "d_conv": c["conv_kernel"], "dt_rank": c["time_step_rank"],
        "options": ", ".join(options), "weights": form, "seed": seed, "KB": round(size / 1000),
        "max logit": f"{result['max_logit']:.3g}", "f32 error": f"{error:.1e}",
        "least margin": f"{result['margin']:.1e}", "distinct": result["distinct"],
    }
    print(" ".join(f"{k}={v}" for k, v in line.items()), flush=True)
    return line


def write_readme(rows: list[dict]):
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(r[k]) for k in head) + " |" for r in rows]
    versions = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    (FIXTURES / "README.md").write_text(
        "# Fixtures\n"
        "Small random checkpoints and what Hugging Face transformers computes with them (float32, CPU, "
        f"{versions}).\nMade by `python tests/reference/make_fixtures.py`, which says what is in them. "
        "The two bundled models have only what is expected of them.\n\n"
        + "\n".join(lines)
        + "\n\n`f32 error` is the largest distance of a logit from a computation in float64, `least margin` the "
        "least distance between the two best\nlogits in the greedy continuation; both as a share of the largest "
        "logit. `distinct` counts the tokens of that continuation.\n`perplexity.json` is made by "
        "`python tests/reference/perplexity.py`.\n"
    )


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    wanted = sys.argv[1:]
    FIXTURES.mkdir(exist_ok=True)
    rows = [make(recipe) for recipe in RECIPES if not wanted or recipe.name in wanted]
    rows += [make_bundled(n) for n in PROMPTS if not wanted or n in wanted]
    if not wanted:
        write_readme(rows)


if __name__ == "__main__":
    main()
