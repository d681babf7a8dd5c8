"""The held-out text of the two bundled models: what tools/train/train.py did not train on.

It is the last 2% of each training text, by characters, in the order of training.
The Rust tests make the same text in tests/src/fixture.rs.
"""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# `cargo run -p elapid-test-support` makes this folder.
DATA = REPOSITORY / "target" / "test-data"
TEXTS = ["sotu.txt", "moby-dick.txt"]


def held_out_text() -> str:
    """The last 2% of each text, joined without a separator."""
    texts = [(DATA / "text" / name).read_text(encoding="utf-8") for name in TEXTS]
    return "".join(text[int(len(text) * 0.98) :] for text in texts)
