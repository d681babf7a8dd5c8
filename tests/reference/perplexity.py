"""The golden perplexities of the bundled models: tests/fixtures/perplexity.json.

    pip install -r tests/reference/requirements.txt
    python tests/reference/perplexity.py            about a minute

What `elapid perplexity` computes, and this:
  1. The text is UTF-8 and is tokenized as a whole by the model's tokenizer. Truncation and padding in
     tokenizer.json are ignored. No token is added in front, whatever the generation defaults name as bos.
  2. With `--max-tokens N`, only the first N tokens count. Let t[0..N] be the tokens.
  3. The model runs once over all of them from an empty state. There are no windows: a recurrent model carries its
     state, so token i is predicted from all of t[0..i]. t[0] is context only.
  4. perplexity = exp(mean over i in 1..N of -ln softmax(logits after t[i-1])[t[i]]), the softmax and the mean in
     float64. `tokens` is N; the mean is over N - 1 predictions.

The goldens come from one call of transformers over 4096 tokens (float32, CPU). The same in float64 by mamba_f64.py
is stored beside them, so that one sees how much of the figure is rounding, and so is the figure of the whole
held-out text in float64.
"""

import json
import math

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer

from held_out import DATA, held_out_text
from make_fixtures import FIXTURES, load, logits_of
from mamba_f64 import Model

MAX_TOKENS = 4096
CHUNK = 2048


def tokenize(name: str, text: str) -> list[int]:
    tokenizer = Tokenizer.from_file(str(DATA / "models" / name / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer.encode(text, add_special_tokens=False).ids


def losses(logits: np.ndarray, targets) -> np.ndarray:
    """-ln softmax(logits)[target], row by row, in float64."""
    logits = logits[: len(targets)].astype(np.float64)
    top = logits.max(axis=-1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1))
    return log_sum - logits[np.arange(len(targets)), targets]


def nll_transformers(name: str, tokens: list[int]) -> float:
    return float(losses(logits_of(load(DATA / "models" / name), tokens), tokens[1:]).mean())


def nll_float64(name: str, tokens: list[int]) -> float:
    model, total = Model(DATA / "models" / name), 0.0
    for start in range(0, len(tokens), CHUNK):
        logits = model.forward(tokens[start : start + CHUNK])
        total += losses(logits, tokens[start + 1 : start + 1 + CHUNK]).sum()
    return total / (len(tokens) - 1)


def golden(name: str, text: str) -> dict:
    whole = tokenize(name, text)
    tokens = whole[:MAX_TOKENS]
    nll, exact = nll_transformers(name, tokens), nll_float64(name, tokens)
    assert abs(nll - exact) < 1e-5, f"{name}: {nll} in float32, {exact} in float64"
    return {
        **figures(tokens, nll),
        "float64": figures(tokens, exact),
        "whole_text_float64": figures(whole, nll_float64(name, whole)),
    }


def figures(tokens: list[int], nll: float) -> dict:
    return {"tokens": len(tokens), "perplexity": round(math.exp(nll), 9), "mean_nll": round(nll, 12)}


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    text, names = held_out_text(), ("address-300k", "address-4m")
    result = {
        "text": "the last 2% of sotu.txt and of moby-dick.txt, by characters, joined (held_out.py)",
        "versions": {
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "models": {name: golden(name, text) for name in names},
    }
    (FIXTURES / "perplexity.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["models"], indent=2))


if __name__ == "__main__":
    main()
