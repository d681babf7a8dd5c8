"""Writes autotokenizer_llama.json: what transformers' AutoTokenizer makes of folders with SentencePiece's BPE.

    pip install transformers==5.24.0 && python3 autotokenizer_llama.py > autotokenizer_llama.json

The form is that of autotokenizer.json.
"""
from folders import flags, write

vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
for byte in range(256):
    vocab[f"<0x{byte:02X}>"] = len(vocab)
for c in "▁abcdehlot.":
    vocab[c] = len(vocab)
merges = [["▁", "t"], ["h", "e"], ["▁t", "he"], ["l", "o"], ["▁", "▁"], ["▁", "lo"]]
for left, right in merges:
    vocab[left + right] = len(vocab)
NEXT = len(vocab)


NAMES = ["<unk>", "<s>", "</s>"]
DECODER = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
           {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
BASE = {
    "version": "1.0", "truncation": None, "padding": None,
    "added_tokens": [{"id": id, **flags(name)} for id, name in enumerate(NAMES)],
    "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
    "pre_tokenizer": None,
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    },
    "decoder": {"type": "Sequence", "decoders": DECODER},
    "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
              "fuse_unk": True, "byte_fallback": True, "vocab": vocab, "merges": merges},
}
METASPACE = {"normalizer": None, "pre_tokenizer": {
    "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}}
NORMALIZED = {"added_tokens": [{"id": id, **flags(name, normalized=True)} for id, name in enumerate(NAMES)]}
DECLARED = {str(id): flags(name) for id, name in enumerate(NAMES)}
TEXTS = ["the lo", " the  lo", "the</s>the lo", "</s> lo", "é\n", "lo<s>lo", "<|x|> the <|x|>lo"]

cases = []


def case(name, tokenizer={}, config=None):
    cases.append(dict(name=name, tokenizer=tokenizer, tokenizer_config=config, texts=TEXTS))


for cls in ["PreTrainedTokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast"]:
    c = {"tokenizer_class": cls}
    for kind, tokenizer in [("Prepend", {}), ("Metaspace", METASPACE), ("normalized", NORMALIZED)]:
        n = f"{cls}, {kind}"
        case(f"{n}: nothing else", tokenizer, c)
        case(f"{n}: legacy", tokenizer, {**c, "legacy": True})
        case(f"{n}: not legacy", tokenizer, {**c, "legacy": False})
        case(f"{n}: add_prefix_space", tokenizer, {**c, "add_prefix_space": True})
        case(f"{n}: no add_prefix_space", tokenizer, {**c, "add_prefix_space": False})
        case(f"{n}: add_bos_token and add_eos_token", tokenizer, {**c, "add_bos_token": False, "add_eos_token": True})
        case(f"{n}: added_tokens_decoder", tokenizer, {**c, "added_tokens_decoder": {
            **DECLARED, str(NEXT): flags("<|x|>", rstrip=True)}})
        case(f"{n}: a pad", tokenizer, {**c, "pad_token": "</s>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
        case(f"{n}: no template", {**tokenizer, "post_processor": None}, c)


# Not by decoding: tokenizers 0.23 shows normalised special tokens that it is to leave out; 0.22 does not.
write(BASE, cases, lambda tokenizer: sorted(
    id for id, token in tokenizer.added_tokens_decoder.items() if token.special))
