"""Makes torch_save.bin and torch_save_old.bin, which torch.save writes, and torch_save.safetensors with the values in f32.

    pip install torch==2.15.0 safetensors==0.8.0 numpy==2.4.6
    python tools/pack/tests/data/torch_save.py
"""

from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
base = torch.randn(60, generator=torch.Generator().manual_seed(17))
tensors = OrderedDict(
    plain=base[:6].clone().reshape(2, 3),
    half=base[:5].half(),
    brain=base[:7].bfloat16().reshape(7, 1),
    double=base[:4].double() / 3,
    parameter=torch.nn.Parameter(base[10:16].clone()),
    # Views of one storage: all of it, a part, a transposed one, every second column, one row repeated.
    whole=base.view(6, 10),
    part=base[13:43].view(3, 10),
    transposed=base.view(6, 10).t(),
    columns=base.view(6, 10)[:, ::2],
    narrow=base.view(6, 10)[1:5, 3:8],
    repeated=base[:10].expand(4, 10),
    deep=base[:24].view(2, 3, 4).permute(1, 2, 0),
    scalar=base[7],
    empty=torch.zeros(0, 4),
    counter=torch.tensor(3),
)
tensors._metadata = OrderedDict({"": {"version": 1}})
torch.save(tensors, HERE / "torch_save.bin")
torch.save({"state_dict": tensors, "epoch": 3}, HERE / "torch_save_old.bin", _use_new_zipfile_serialization=False)
values = {name: tensor.detach().float().clone().contiguous() for name, tensor in tensors.items()}
save_file(values, HERE / "torch_save.safetensors")
