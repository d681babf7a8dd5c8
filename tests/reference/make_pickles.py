"""Makes tests/support/files/original: the fixture mamba-conv1 as the original Mamba's folders are, in both formats of torch.save.

    pip install -r tests/reference/requirements.txt
    python tests/reference/make_pickles.py
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

REPOSITORY = Path(__file__).parents[2]
SOURCE = REPOSITORY / "tests/fixtures/mamba-conv1"
config = json.loads((SOURCE / "config.json").read_text())
original = {
    "d_model": config["hidden_size"], "n_layer": config["num_hidden_layers"],
    # Fewer than the rows, which are its multiple.
    "vocab_size": config["vocab_size"] - 9, "pad_vocab_size_multiple": config["vocab_size"],
    "ssm_cfg": {"d_state": config["state_size"], "d_conv": config["conv_kernel"], "dt_rank": config["time_step_rank"]},
    "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True,
}
tensors = {}
for name, tensor in load_file(SOURCE / "model.safetensors").items():
    if name.endswith("out_proj.weight"):
        # Stored by columns, as code that transposes may leave it.
        tensor = tensor.t().contiguous().t()
    tensors[name.replace("embeddings", "embedding")] = tensor
# Tied: one storage.
tensors["lm_head.weight"] = tensors["backbone.embedding.weight"]
for name, options in [("zip", {}), ("old", {"_use_new_zipfile_serialization": False})]:
    folder = REPOSITORY / "tests/support/files/original" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(original, indent=2) + "\n")
    torch.save(tensors, folder / "pytorch_model.bin", **options)
