"""Drives a server with clients as people have them: the packages openai and ollama, and an independent validator of schemas.

    python clients.py ADDRESS [SCHEMAS]

ADDRESS is a server of the bundled model, such as http://127.0.0.1:8080. SCHEMAS is the number of random schemas, 40 unless given.
"""

import json
import random
import sys
import threading
import time

import jsonschema
import ollama
import openai

ADDRESS = sys.argv[1]
SCHEMAS = int(sys.argv[2]) if len(sys.argv) > 2 else 40
CLIENT = openai.OpenAI(base_url=ADDRESS + "/v1", api_key="none", max_retries=0, timeout=60)
MODEL = CLIENT.models.list().data[0].id
USER = [{"role": "user", "content": "My fellow citizens"}]


def chat():
    whole = CLIENT.chat.completions.create(model=MODEL, messages=USER, max_tokens=20, seed=1)
    assert whole.choices[0].message.role == "assistant" and whole.choices[0].finish_reason == "length", whole
    assert whole.usage.completion_tokens == 20 and whole.usage.prompt_tokens == 4, whole.usage
    again = CLIENT.chat.completions.create(model=MODEL, messages=USER, max_completion_tokens=20, seed=1)
    assert again.choices[0].message.content == whole.choices[0].message.content
    assert again.usage.prompt_tokens_details.cached_tokens == 4, again.usage
    parts = [{"role": "user", "content": [{"type": "text", "text": "My fellow"}, {"type": "text", "text": " citizens"}]}]
    same = CLIENT.chat.completions.create(model=MODEL, messages=parts, max_tokens=20, seed=1)
    assert same.choices[0].message.content == whole.choices[0].message.content
    stream = CLIENT.chat.completions.create(
        model=MODEL, messages=USER, max_tokens=20, seed=1, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content, (text, whole)
    assert chunks[-1].usage.completion_tokens == 20, chunks[-1]
    several = CLIENT.chat.completions.create(model=MODEL, messages=USER, max_tokens=5, n=3, seed=1, temperature=1.5)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    likely = CLIENT.chat.completions.create(
        model=MODEL, messages=USER, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    for token in likely.choices[0].logprobs.content:
        assert token.logprob == token.top_logprobs[0].logprob and len(token.top_logprobs) == 3, token
    stopped = CLIENT.chat.completions.create(model=MODEL, messages=USER, max_tokens=200, seed=1, stop=[" the", "."])
    assert stopped.choices[0].finish_reason == "stop" and " the" not in stopped.choices[0].message.content


def completions():
    one = CLIENT.completions.create(model=MODEL, prompt="The whale", max_tokens=8, temperature=0, echo=True, logprobs=1)
    assert one.choices[0].text.startswith("The whale") and one.choices[0].logprobs.token_logprobs[0] is None, one
    two = CLIENT.completions.create(model=MODEL, prompt=["The whale", "I"], max_tokens=8, temperature=0)
    assert one.choices[0].text == "The whale" + two.choices[0].text and len(two.choices) == 2
    stream = CLIENT.completions.create(model=MODEL, prompt="The whale", max_tokens=8, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == two.choices[0].text
    banned = {str(token): -100 for token in range(0, 50)}
    CLIENT.completions.create(model=MODEL, prompt="The whale", max_tokens=8, logit_bias=banned, presence_penalty=1.0)


def responses():
    whole = CLIENT.responses.create(model=MODEL, input="My fellow citizens", max_output_tokens=6)
    assert whole.status == "incomplete" and whole.output_text, whole
    with CLIENT.responses.stream(model=MODEL, input="My fellow citizens", max_output_tokens=6) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text, "no deltas"


def tools():
    add = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    given = [{"type": "function", "function": {"name": "add", "parameters": add}}]
    named = {"type": "function", "function": {"name": "add"}}
    whole = CLIENT.chat.completions.create(model=MODEL, messages=USER, tools=given, tool_choice=named, max_tokens=200)
    call = whole.choices[0].message.tool_calls[0]
    assert call.function.name == "add" and whole.choices[0].finish_reason == "tool_calls", whole
    jsonschema.validate(json.loads(call.function.arguments), add)
    stream = CLIENT.chat.completions.create(
        model=MODEL, messages=USER, tools=given, tool_choice="required", max_tokens=200, stream=True
    )
    calls = [call for chunk in stream for call in (chunk.choices[0].delta.tool_calls or [])]
    assert len(calls) == 1 and calls[0].index == 0 and calls[0].function.name == "add", calls
    history = USER + [
        whole.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "3"},
    ]
    CLIENT.chat.completions.create(model=MODEL, messages=history, tools=given, max_tokens=5)


def schema(depth, dice):
    """A random schema whose texts are short: what is tested is that they are valid."""
    kind = dice.choice(["enum", "boolean", "null", "integer", "string"] + ["object", "array", "anyOf"] * (depth > 0))
    if kind == "enum":
        return {"enum": dice.sample(["a", "b c", 'd"e', 1, -2.5, None, True, "é☃"], dice.randint(1, 4))}
    if kind == "integer":
        low = dice.randint(-100, 100)
        return {"type": "integer", "minimum": low, "maximum": low + dice.randint(0, 500)}
    if kind == "string":
        return dice.choice(
            [{"type": "string", "maxLength": dice.randint(0, 8)}, {"type": "string", "pattern": "^[a-c]{1,4}-[0-9]{2}$"}]
        )
    if kind == "array":
        least = dice.randint(0, 2)
        return {"type": "array", "items": schema(depth - 1, dice), "minItems": least, "maxItems": least + dice.randint(0, 2)}
    if kind == "object":
        names = dice.sample(["x", "y y", "z", 'q"', "ü"], dice.randint(1, 4))
        return {
            "type": "object",
            "properties": {name: schema(depth - 1, dice) for name in names},
            "required": names[: dice.randint(0, len(names))],
            "additionalProperties": False,
        }
    if kind == "anyOf":
        return {"anyOf": [schema(depth - 1, dice) for _ in range(dice.randint(1, 3))]}
    return {"type": kind}


def schemas():
    dice = random.Random(7)
    for case in range(SCHEMAS):
        wanted = schema(3, dice)
        answer = CLIENT.chat.completions.create(
            model=MODEL,
            messages=USER,
            max_tokens=2000,
            temperature=1.5,
            top_p=1,
            seed=case,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": wanted}},
        )
        text = answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "stop", (wanted, text)
        jsonschema.validate(json.loads(text), wanted)


def errors():
    for call, kind in [
        (lambda: CLIENT.chat.completions.create(model="other", messages=USER), openai.NotFoundError),
        (lambda: CLIENT.chat.completions.create(model=MODEL, messages=[]), openai.BadRequestError),
        (lambda: CLIENT.chat.completions.create(model=MODEL, messages=USER, temperature=-1), openai.BadRequestError),
        (lambda: CLIENT.embeddings.create(model=MODEL, input="x"), openai.BadRequestError),
    ]:
        try:
            call()
        except kind as error:
            assert error.body["message"], error
        else:
            raise AssertionError("no error")


def cancellation():
    stream = CLIENT.chat.completions.create(model=MODEL, messages=USER, max_tokens=1_000_000, stream=True)
    for _ in zip(range(3), stream):
        pass
    stream.close()
    answer = CLIENT.chat.completions.create(model=MODEL, messages=USER, max_tokens=3)
    assert answer.usage.completion_tokens == 3


def many():
    """More requests at once than there are places: each gets the text that it gets alone."""
    ask = lambda seed: CLIENT.chat.completions.create(model=MODEL, messages=USER, max_tokens=25, seed=seed)
    alone = [ask(seed).choices[0].message.content for seed in range(12)]
    together = [None] * 12

    def one(seed):
        together[seed] = ask(seed).choices[0].message.content

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(12)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert together == alone


def other_interface():
    client = ollama.Client(host=ADDRESS)
    name = client.list().models[0].model
    assert client.show(name).details.family == "mamba"
    options = {"num_predict": 12, "seed": 1}
    whole = client.chat(name, messages=USER, options=options)
    assert whole.done and whole.done_reason == "length" and whole.eval_count == 12, whole
    pieces = [part.message.content for part in client.chat(name, messages=USER, options=options, stream=True)]
    assert "".join(pieces) == whole.message.content
    text = client.generate(name, prompt="My fellow citizens", options=options)
    assert text.response and text.prompt_eval_count == 4, text
    wanted = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    answer = client.chat(name, messages=USER, format=wanted, options={"num_predict": 200})
    jsonschema.validate(json.loads(answer.message.content), wanted)
    assert client.ps().models[0].model == name
    try:
        client.chat("other", messages=USER)
    except ollama.ResponseError as error:
        assert error.status_code == 404 and "other" in error.error, error
    else:
        raise AssertionError("no error")


for test in [chat, completions, responses, tools, schemas, errors, cancellation, many, other_interface]:
    start = time.time()
    test()
    print(f"{test.__name__}: ok ({time.time() - start:.2f} s)")
