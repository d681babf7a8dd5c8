"""Makes tests/support/files/gguf: fixtures as llama.cpp's converter writes them, without a tokenizer, and what transformers
computes with the weights in them.

    python tests/reference/make_gguf.py LLAMA_CPP

LLAMA_CPP is a copy of its source, such as `vendor/llama.cpp` in the source package of llama-cpp-python 0.3.36; it needs
torch and transformers (requirements.txt). The converter takes only models whose d_inner is twice d_model.
"""

import runpy
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
LLAMA_CPP = Path(sys.argv[1]).resolve()
sys.path[:0] = [str(LLAMA_CPP / "gguf-py"), str(LLAMA_CPP)]

import torch  # noqa: E402
import transformers  # noqa: E402
from conversion.mamba import MambaModel  # noqa: E402
from gguf import GGUFReader  # noqa: E402
from gguf.quants import dequantize  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

MambaModel.set_vocab = lambda self: None
NAMES = {"token_embd": "backbone.embeddings", "output_norm": "backbone.norm_f", "attn_norm": "norm", "ssm_in": "mixer.in_proj",
         "ssm_conv1d": "mixer.conv1d", "ssm_x": "mixer.x_proj", "ssm_dt": "mixer.dt_proj", "ssm_a": "mixer.A_log",
         "ssm_d": "mixer.D", "ssm_out": "mixer.out_proj"}


def hugging_face(name):
    return ".".join("backbone.layers" if part == "blk" else NAMES.get(part, part) for part in name.split("."))


for name, kind in [("mamba-conv1", "f32"), ("falcon-even", "q8_0")]:
    folder = REPOSITORY / "tests/fixtures" / name
    target = REPOSITORY / "tests/support/files/gguf" / f"{name}-{kind}.gguf"
    sys.argv = ["convert", str(folder), "--outtype", kind, "--outfile", str(target)]
    try:
        runpy.run_path(str(LLAMA_CPP / "convert_hf_to_gguf.py"), run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    parameters = dict(model.named_parameters())
    for tensor in GGUFReader(target).tensors:
        values = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        if tensor.name.endswith("ssm_a"):
            values = torch.log(-values)
        with torch.no_grad():
            parameter = parameters.pop(hugging_face(tensor.name))
            parameter.copy_(values.reshape(parameter.shape))
    assert not parameters, parameters.keys()
    tokens = load_file(folder / "expected.safetensors")["tokens"][:16]
    with torch.no_grad():
        logits = model(torch.tensor(tokens)[None].long()).logits[0].numpy()
    save_file({"tokens": tokens, "logits": logits}, target.with_suffix(".safetensors"))
    target.with_suffix(".safetensors").chmod(0o644)
