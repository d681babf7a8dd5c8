"""llama.cpp's logits of the fixtures that it can load, beside double precision.

    python tests/reference/peer_logits.py

It has one epsilon for all norms, where transformers has 1e-6 for the ones of B, C and dt in Falcon Mamba: both are tried. Needs torch,
safetensors, gguf and llama-cpp-python 0.3.36, which builds llama.cpp.
"""

import ctypes
import sys
from pathlib import Path

import gguf
import llama_cpp as llama
import numpy as np
from mamba_f64 import Model, load_weights

FIXTURES = Path(__file__).parents[1] / "fixtures"
FILE = Path("peer_logits.gguf")
TOKENS = range(1, 17)
NAMES = {"backbone.embeddings.weight": "token_embd.weight", "backbone.norm_f.weight": "output_norm.weight",
         "lm_head.weight": "output.weight"}


def tensor(name, values):
    """A tensor as the converter names and stores it."""
    if name in NAMES:
        return NAMES[name], values
    _, _, layer, *rest = name.split(".")
    part = ".".join(rest).removeprefix("mixer.").replace("_proj", "")
    if part == "A_log":
        return f"blk.{layer}.ssm_a", -np.exp(values)
    if part == "D":
        return f"blk.{layer}.ssm_d", values
    if part == "conv1d.weight":
        values = values[:, 0]
    return f"blk.{layer}." + (f"attn_{part}" if part.startswith("norm") else f"ssm_{part}"), values


def write(folder, config):
    """A GGUF file without a tokenizer."""
    writer = gguf.GGUFWriter(FILE, "mamba")
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_ssm_conv_kernel(config["conv_kernel"])
    writer.add_ssm_inner_size(config["intermediate_size"])
    writer.add_ssm_state_size(config["state_size"])
    writer.add_ssm_time_step_rank(config["time_step_rank"])
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
    writer.add_ssm_dt_b_c_rms(config["model_type"] == "falcon_mamba")
    writer.add_string("tokenizer.ggml.model", "no_vocab")
    writer.add_uint32("mamba.vocab_size", config["vocab_size"])
    for name, values in load_weights(folder).items():
        name, values = tensor(name, values)
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(vocab):
    """The peer's logits [tokens, vocab]; None if it refuses the file."""
    model = llama.llama_model_load_from_file(str(FILE).encode(), llama.llama_model_default_params())
    if not model:
        return None
    options = llama.llama_context_default_params()
    options.n_ctx, options.n_threads = 64, 1
    context = llama.llama_init_from_model(model, options)
    batch = llama.llama_batch_init(len(TOKENS), 0, 1)
    batch.n_tokens = len(TOKENS)
    for i, token in enumerate(TOKENS):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, 1
    if llama.llama_decode(context, batch):
        sys.exit("llama_decode failed")
    rows = (llama.llama_get_logits_ith(context, i) for i in range(len(TOKENS)))
    return np.stack([np.ctypeslib.as_array(row, shape=(vocab,)).copy() for row in rows])


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def silent(_level, _text, _data):
    pass


llama.llama_log_set(silent, None)
llama.llama_backend_init()
for folder in sorted(path.parent for path in FIXTURES.glob("*/config.json")):
    model = Model(folder)
    write(folder, model.config)
    theirs = logits(model.config["vocab_size"])
    FILE.unlink()
    if theirs is None:
        print(f"{folder.name}: llama.cpp refuses it")
        continue
    falcon = model.config["model_type"] == "falcon_mamba"
    for eps in [model.config["mixer_rms_eps"], model.config["layer_norm_epsilon"]] if falcon else [None]:
        model.config["mixer_rms_eps"] = eps
        model.reset()
        ours = model.forward(TOKENS)
        difference = np.abs(theirs - ours).max() / np.abs(ours).max()
        print(f"{folder.name}: {difference:.1e} of the largest logit" + (f", epsilon of B, C and dt {eps:g}" if falcon else ""))
