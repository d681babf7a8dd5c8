"""What autotokenizer.py and autotokenizer_llama.py share: folders made of patches, and what AutoTokenizer makes of them."""
import copy, json, os, tempfile, warnings

os.environ.update(TRANSFORMERS_VERBOSITY="critical", HF_HUB_OFFLINE="1")
warnings.filterwarnings("ignore")
from transformers import AutoTokenizer

ABSENT = dict.fromkeys(["normalizer", "pre_tokenizer", "post_processor", "padding", "truncation"])


def flags(content, **changed):
    token = dict(content=content, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    return {**token, **changed}


def patch(target, change):
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            patch(target[key], value)
        elif value is None:
            target.pop(key, None)
        else:
            target[key] = value
    return target


def run(base, case, special):
    """Adds what AutoTokenizer makes of a case; `special` gives a tokenizer's special ids."""
    with tempfile.TemporaryDirectory() as folder:
        def write(name, value):
            if value is not None:
                with open(os.path.join(folder, name), "w") as file:
                    json.dump(value, file)
        write("tokenizer.json", {**ABSENT, **patch(copy.deepcopy(base), case["tokenizer"])})
        for key in ["tokenizer_config", "special_tokens_map", "added_tokens"]:
            write(key + ".json", case.get(key))
        write("config.json", {"model_type": "mamba", "vocab_size": 300, "tokenizer_class": case.get("model_class")})
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            case["ids"] = [tokenizer(text)["input_ids"] for text in case["texts"]]
            case["named"] = tokenizer.special_tokens_map
            case["special"] = special(tokenizer)
        except Exception as error:
            case["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        return {key: value for key, value in case.items() if value not in (None, {}) or key == "tokenizer_config" and value == {}}


def write(base, cases, special):
    lines = ",\n".join(json.dumps(run(base, case, special), ensure_ascii=False, separators=(",", ":")) for case in cases)
    print(f'{{"base": {json.dumps(base, ensure_ascii=False)},\n"cases": [\n{lines}\n]}}')
