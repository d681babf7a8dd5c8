"""Writes a Mamba GGUF file of random weights in F16, of the same shape as `elapid-pack --random PRESET`.

For the comparison with llama.cpp in `cargo xtask bench --peer`: speed depends on shapes, not on values.
Usage: random_gguf.py PRESET FILE
"""

import sys

import numpy as np
from gguf import GGUFWriter, GGMLQuantizationType

# d_model, layers, vocabulary, norms of B, C and dt
PRESETS = {
    "mamba-130m": (768, 24, 50280, False),
    "mamba-370m": (1024, 48, 50280, False),
    "mamba-790m": (1536, 48, 50280, False),
    "mamba-1.4b": (2048, 48, 50280, False),
    "mamba-2.8b": (2560, 64, 50280, False),
    "falcon-mamba-7b": (4096, 64, 65024, True),
}
D_STATE, D_CONV = 16, 4


def main() -> None:
    preset, path = sys.argv[1:]
    d_model, layers, vocab, normed = PRESETS[preset]
    d_inner, dt_rank = 2 * d_model, d_model // 16
    # The published vocabulary is padded to a multiple of 8; both programs pad further.
    random = np.random.default_rng(1)
    writer = GGUFWriter(path, "mamba", use_temp_file=True)
    writer.add_context_length(1 << 20)
    writer.add_embedding_length(d_model)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(layers)
    writer.add_ssm_conv_kernel(D_CONV)
    writer.add_ssm_inner_size(d_inner)
    writer.add_ssm_state_size(D_STATE)
    writer.add_ssm_time_step_rank(dt_rank)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_ssm_dt_b_c_rms(normed)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(vocab)

    def matrix(name: str, rows: int, cols: int) -> None:
        # A few rows of normal numbers, repeated: a whole matrix of them takes minutes at 7B.
        rows_made = min(rows, 256)
        made = (random.standard_normal((rows_made, cols), dtype=np.float32) * cols**-0.5).astype(np.float16)
        writer.add_tensor(name, np.tile(made, (-(-rows // rows_made), 1))[:rows])

    def vector(name: str, values: np.ndarray) -> None:
        writer.add_tensor(name, values.astype(np.float32), raw_dtype=GGMLQuantizationType.F32)

    matrix("token_embd.weight", vocab, d_model)
    vector("output_norm.weight", np.ones(d_model))
    if normed:
        matrix("output.weight", vocab, d_model)
    for i in range(layers):
        at = f"blk.{i}."
        vector(at + "attn_norm.weight", np.ones(d_model))
        matrix(at + "ssm_in.weight", 2 * d_inner, d_model)
        vector(at + "ssm_conv1d.weight", random.standard_normal((d_inner, D_CONV)) * 0.5)
        vector(at + "ssm_conv1d.bias", np.zeros(d_inner))
        matrix(at + "ssm_x.weight", dt_rank + 2 * D_STATE, d_inner)
        matrix(at + "ssm_dt.weight", d_inner, dt_rank)
        vector(at + "ssm_dt.bias", np.full(d_inner, -4.0))
        vector(at + "ssm_a", -np.tile(np.arange(1.0, D_STATE + 1), (d_inner, 1)))
        vector(at + "ssm_d", np.ones(d_inner))
        matrix(at + "ssm_out.weight", d_model, d_inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
