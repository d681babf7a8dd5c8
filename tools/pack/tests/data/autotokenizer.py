"""Writes autotokenizer.json: what transformers' AutoTokenizer makes of small made-up folders.

    pip install transformers==5.24.0 && python3 autotokenizer.py > autotokenizer.json

A case is a patch of the base tokenizer.json (as by RFC 7396), the files beside it, and, for each text, the ids; or the
error with which AutoTokenizer ends.
"""
from folders import flags, write
from transformers.models.mamba import MambaConfig

letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
rest = [b for b in range(256) if b not in letters]
letter = {**{b: chr(b) for b in letters}, **{b: chr(256 + i) for i, b in enumerate(rest)}}
vocab = {"<|endoftext|>": 0}
for byte in range(256):
    vocab[letter[byte]] = len(vocab)
merges = [["Ġ", "t"], ["h", "e"], ["Ġt", "he"], ["l", "o"]]
for left, right in merges:
    vocab[left + right] = len(vocab)


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BASE = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [{"id": 0, **flags("<|endoftext|>")}],
    "normalizer": None, "pre_tokenizer": BYTE_LEVEL, "post_processor": None, "decoder": BYTE_LEVEL,
    "model": {"type": "BPE", "vocab": vocab, "merges": merges},
}
NFC = {"normalizer": {"type": "NFC"}}
IM = [{"id": 0, **flags("<|endoftext|>")}, {"id": 261, **flags("<|im_start|>")}]
PLAIN = [{"id": 0, **flags("<|endoftext|>")}, {"id": 261, **flags("<|im_start|>", special=False, normalized=True)}]
BOS = {"post_processor": {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
}}
TEXT = "the<|im_start|> lo<|im_end|>x[PAD]<|padding|> e\u0301<|endoftext|>"


def typed(content, **changed):
    return {"__type": "AddedToken", **flags(content, **changed)}


cases = []


def case(name, tokenizer={}, config=None, special=None, added=None, model_class=None, texts=(TEXT,)):
    cases.append(dict(name=name, tokenizer=tokenizer, tokenizer_config=config, special_tokens_map=special,
                      added_tokens=added, model_class=model_class, texts=list(texts)))


for cls in ["TokenizersBackend", "GPTNeoXTokenizer", "GPT2Tokenizer", "PreTrainedTokenizer", "LlamaTokenizerFast",
            "BloomTokenizerFast", "Qwen2Tokenizer", "NoSuchTokenizer"]:
    case(f"{cls}: nothing else", config={"tokenizer_class": cls})
for cls in ["PreTrainedTokenizerFast", "GPTNeoXTokenizerFast", "GPT2TokenizerFast", None]:
    c = {"tokenizer_class": cls} if cls else {}
    n = cls or "no class"
    case(f"{n}: nothing else", config=c)
    case(f"{n}: NFC", NFC, config=c)
    case(f"{n}: added_tokens_decoder", config={**c, "added_tokens_decoder": {
        "0": flags("<|endoftext|>"), "261": flags("<|im_start|>"), "262": flags("<|im_end|>")}})
    case(f"{n}: added_tokens_decoder alone", NFC, config={**c, "pad_token": None, "added_tokens_decoder": {
        "261": flags("<|im_start|>"), "262": flags("<|im_end|>")}})
    case(f"{n}: added_tokens_decoder out of order", config={**c, "added_tokens_decoder": {
        "262": flags("<|im_end|>"), "261": flags("<|im_start|>")}})
    case(f"{n}: added_tokens_decoder with a gap", config={**c, "added_tokens_decoder": {
        "0": flags("<|endoftext|>"), "261": flags("<|im_start|>"), "270": flags("<|im_end|>")}})
    case(f"{n}: added_tokens_decoder without what tokenizer.json adds", {"added_tokens": IM}, config={
        **c, "added_tokens_decoder": {"0": flags("<|endoftext|>")}})
    case(f"{n}: tokens of tokenizer.json", {"added_tokens": IM}, config=c)
    case(f"{n}: additional_special_tokens", config={**c, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    case(f"{n}: extra_special_tokens", config={**c, "extra_special_tokens": ["<|im_end|>", "<|im_start|>"]})
    case(f"{n}: both extra and additional", config={
        **c, "extra_special_tokens": ["<|im_end|>"], "additional_special_tokens": ["<|im_start|>"]})
    case(f"{n}: empty extra and additional", config={
        **c, "extra_special_tokens": [], "additional_special_tokens": ["<|im_start|>"]})
    case(f"{n}: a new pad", config={**c, "pad_token": "[PAD]"})
    case(f"{n}: a new eos and unk", config={**c, "eos_token": "<|im_end|>", "unk_token": "<|im_start|>", "pad_token": "[PAD]"})
    case(f"{n}: a new eos as an object", config={**c, "eos_token": typed("<|im_end|>", special=False)})
    case(f"{n}: an eos of an object without a type", config={**c, "eos_token": flags("<|im_end|>")})
    case(f"{n}: add_prefix_space", config={**c, "add_prefix_space": True}, texts=["the lo", "lo<|endoftext|>lo"])
    case(f"{n}: add_prefix_space false", config={**c, "add_prefix_space": False}, texts=["the lo"])
    case(f"{n}: add_bos_token", config={**c, "add_bos_token": True, "bos_token": "<|endoftext|>"}, texts=["the lo"])
    case(f"{n}: a template", BOS, config=c, texts=["the lo"])
    case(f"{n}: special_tokens_map", config=c, special={
        "eos_token": "<|im_end|>", "pad_token": {"content": "[PAD]", "lstrip": False, "rstrip": False, "normalized": False,
                                                 "single_word": False}})
    case(f"{n}: special_tokens_map and added_tokens_decoder", config={
        **c, "added_tokens_decoder": {"0": flags("<|endoftext|>")}}, special={"eos_token": "<|im_end|>"})
    case(f"{n}: special_tokens_map with additional", config=c, special={"additional_special_tokens": ["<|im_start|>"]})
    case(f"{n}: special_tokens_map overrides", config={**c, "pad_token": "[PAD]"}, special={"pad_token": "<|im_end|>"})
    case(f"{n}: added_tokens.json", config=c, added={"<|im_start|>": 261, "<|im_end|>": 262})
    case(f"{n}: added_tokens.json, special", NFC, config={**c, "eos_token": "<|im_end|>"},
         added={"<|im_end|>": 262, "<|im_start|>": 261})
    case(f"{n}: added_tokens.json out of step", config=c, added={"<|im_start|>": 290})
    case(f"{n}: a token of the vocabulary becomes special", config={**c, "extra_special_tokens": ["lo", "the"]})
    case(f"{n}: a token of its own name", config={**c, "image_token": "<|im_start|>"})
    case(f"{n}: extra_special_tokens with a name", config={**c, "extra_special_tokens": {"image_token": "<|im_start|>"}})
    case(f"{n}: lstrip is changed", {"added_tokens": IM}, config={**c, "added_tokens_decoder": {
        "0": flags("<|endoftext|>"), "261": flags("<|im_start|>", lstrip=True, rstrip=True)}}, texts=["a <|im_start|> lo"])
    case(f"{n}: single_word is new", config={**c, "added_tokens_decoder": {
        "0": flags("<|endoftext|>"), "261": flags("<|im_start|>", single_word=True)}})

T = {"tokenizer_class": "PreTrainedTokenizerFast"}
case("no tokenizer_config.json", NFC)
case("no tokenizer_config.json, without NFC")
case("the class in config.json", model_class="PreTrainedTokenizerFast")
case("the class in config.json, another in tokenizer_config.json", config={"tokenizer_class": "GPT2Tokenizer"},
     model_class="PreTrainedTokenizerFast")
case("lstrip is taken back", {"added_tokens": [IM[0], {**IM[1], "lstrip": True}]}, config={
    **T, "added_tokens_decoder": {"0": flags("<|endoftext|>"), "261": flags("<|im_start|>")}}, texts=["a <|im_start|> lo"])
case("special is changed", {"added_tokens": PLAIN}, config={
    **T, "added_tokens_decoder": {"261": flags("<|im_start|>")}})
case("special is taken back", {"added_tokens": IM}, config={
    **T, "added_tokens_decoder": {"261": flags("<|im_start|>", special=False, normalized=True)}})
case("normalized is changed", {**NFC, "added_tokens": PLAIN}, config={
    **T, "added_tokens_decoder": {"261": flags("<|im_start|>", special=False, normalized=False)}})
case("normalized is changed, without NFC", {"added_tokens": PLAIN}, config={
    **T, "added_tokens_decoder": {"261": flags("<|im_start|>", special=False, normalized=False)}})
case("a plain token that is named", {"added_tokens": PLAIN}, config={**T, "eos_token": "<|im_start|>"})
case("a declared plain token that is named", config={**T, "eos_token": "<|im_end|>", "added_tokens_decoder": {
    "261": flags("<|im_end|>", special=False)}})
case("padding of tokenizer.json", {"padding": {
    "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
    "pad_token": "[PAD]"}}, config=T)
case("padding of tokenizer.json, and a pad", {"padding": {
    "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
    "pad_token": "[PAD]"}}, config={**T, "pad_token": "<|im_end|>"})
case("split_special_tokens", config={**T, "split_special_tokens": True})
case("ignore_merges", {"model": {"ignore_merges": True, "merges": []}}, config={"tokenizer_class": "GPTNeoXTokenizer"})
case("Falcon's pre_tokenizer read as GPT-NeoX", {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
    {"type": "Punctuation", "behavior": "Contiguous"}, BYTE_LEVEL, {"type": "Digits", "individual_digits": False},
    {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": False}]}}, config={},
     texts=["12345 the!!"])
case("one token described twice", config={"tokenizer_class": "GPT2Tokenizer",
                                          "unk_token": typed("<|endoftext|>", normalized=True, special=False), "mask_token": "x"})
case("normalized is taken back", {**NFC, "added_tokens": [{"id": 0, **flags("<|endoftext|>", normalized=True)}]}, config={
    **T, "sep_token": "x", "added_tokens_decoder": {"0": flags("<|endoftext|>")}})
case("added_tokens.json, special by an object", config={**T, "extra_special_tokens": [typed("<|im_end|>")]},
     added={"<|im_end|>": 261})
case("two tokens of their own names", config={**T, "image_token": "<|im_start|>", "a_token": "<|im_end|>"})
case("auto_map", config={**T, "auto_map": {"AutoTokenizer": ["tokenization.Custom", None]}})
case("fast_tokenizer_files", config={**T, "fast_tokenizer_files": ["tokenizer.json"]})
case("null for the class's tokens", config={"bos_token": None, "eos_token": None, "unk_token": None, "pad_token": None})
case("a token declared twice", config={**T, "added_tokens_decoder": {
    "261": flags("<|im_end|>"), "262": flags("<|im_end|>")}})
case("the id of another token", config={**T, "added_tokens_decoder": {"5": flags("<|im_end|>")}})
case("an empty token", config={**T, "extra_special_tokens": ["", "<|im_end|>"]})
case("tokens of another spelling", config={**T, "extra_special_tokens": ["\u00e9", "e\u0301"]})
case("extra_special_tokens of objects", config={**T, "extra_special_tokens": [typed("<|im_end|>", rstrip=False)]})
case("extra_special_tokens of objects without a type", config={**T, "extra_special_tokens": [flags("<|im_end|>")]})
case("extra_special_tokens that are no list", config={**T, "extra_special_tokens": "<|im_end|>"})
case("added_tokens_decoder that is null", config={**T, "added_tokens_decoder": None})
case("an eos that is no text", config={**T, "eos_token": 5})
case("special_tokens_map with extra", config={**T, "extra_special_tokens": ["<|im_start|>"]},
     special={"extra_special_tokens": ["<|im_start|>", {"content": "<|im_end|>", "normalized": True}]})
case("special_tokens_map with additional, beside extra", config={**T, "extra_special_tokens": ["<|im_start|>"]},
     special={"additional_special_tokens": ["<|im_end|>"]})
case("added_tokens.json, additional in special_tokens_map", NFC, config=T, special={
    "additional_special_tokens": ["<|im_end|>"]}, added={"<|im_end|>": 261})
case("added_tokens.json, beside added_tokens_decoder", config={**T, "added_tokens_decoder": {
    "0": flags("<|endoftext|>")}}, added={"<|im_end|>": 261})


# Those that are left out of a text where it is asked for.
write(BASE, cases, lambda tokenizer: [
    id for id in range(300) if tokenizer.decode([id]) and not tokenizer.decode([id], skip_special_tokens=True)])
