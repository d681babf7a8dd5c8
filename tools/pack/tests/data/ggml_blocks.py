"""Makes ggml_blocks.safetensors: blocks of every quantized type and the values that the package `gguf` gives them.

    pip install gguf==0.19.0 safetensors==0.8.0 numpy==2.4.6
    python tools/pack/tests/data/ggml_blocks.py

All bits are random but the scales in f16, which are of usual magnitudes and both signs.
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize
from safetensors.numpy import save_file

# Where the f16 scales of a block are.
SCALES = {
    Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0],
    Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
    Type.IQ4_NL: [0], Type.IQ4_XS: [0],
}
random = np.random.default_rng(17)
tensors = {}
for kind, scales in SCALES.items():
    length, size = GGML_QUANT_SIZES[kind]
    count = 512 // length
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    for at in scales:
        blocks[:, at:at + 2] = (random.normal(size=(count, 1)) * 0.05).astype(np.float16).view(np.uint8)
    tensors[f"{kind.name}.bytes"] = blocks.reshape(-1)
    tensors[f"{kind.name}.values"] = dequantize(blocks.reshape(-1), kind).astype(np.float32)
save_file(tensors, Path(__file__).parent / "ggml_blocks.safetensors")
