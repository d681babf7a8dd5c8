"""Measures a server, and tries to wear it out. Needs Python only.

    python load.py ADDRESS speed [STREAMS]     tokens a second of one text and of STREAMS (8) together, and times to a first token
    python load.py ADDRESS abuse [REQUESTS]    REQUESTS (100000) good, bad, abandoned and slow ones; good ones must be answered right

ADDRESS is 127.0.0.1:PORT. For the times of a second turn the server must take prompts of 10,000 tokens.
"""

import asyncio
import http.client
import json
import random
import re
import statistics
import sys
import threading
import time

HOST, PORT = sys.argv[1].rsplit(":", 1)
TOKENS = 200


def ask(body, path="/v1/completions"):
    connection = http.client.HTTPConnection(HOST, int(PORT), timeout=600)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert "error" not in answer, answer
    return answer


def first_token(body):
    """Seconds until the first token of a stream, from when the request is ready to be sent."""
    connection = http.client.HTTPConnection(HOST, int(PORT), timeout=600)
    connection.connect()
    request = json.dumps(body | {"stream": True, "max_tokens": 1}).encode()
    start = time.perf_counter()
    connection.request("POST", "/v1/completions", request)
    answer = connection.getresponse()
    while not answer.readline().startswith(b"data: "):
        pass
    took = time.perf_counter() - start
    answer.read()
    connection.close()
    return took


def together(streams, seed):
    """Tokens a second of all streams, and of the slowest beside their mean."""
    speeds = []

    def one(i):
        start = time.perf_counter()
        body = {"prompt": f"{seed} {i} My fellow citizens", "max_tokens": TOKENS, "ignore_eos": True, "seed": i}
        made = ask(body)["usage"]["completion_tokens"]
        speeds.append(made / (time.perf_counter() - start))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(streams)]
    start = time.perf_counter()
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return streams * TOKENS / (time.perf_counter() - start), min(speeds) / statistics.mean(speeds)


def speed(streams):
    rates = {count: [] for count in (1, streams)}
    slowest = []
    for turn in range(5):
        for count in rates:
            rate, least = together(count, turn)
            rates[count].append(rate)
            slowest += [least] * (count == streams)
    one, many = (statistics.median(rates[count]) for count in rates)
    print(f"one text {one:.0f} tokens/s, {streams} together {many:.0f}: {many / one:.2f} times")
    print(f"slowest of them {statistics.median(slowest):.2f} of their mean")
    # While others run: a new short prompt.
    busy = [threading.Thread(target=together, args=(1, 100 + i)) for i in range(streams - 1)]
    [thread.start() for thread in busy]
    time.sleep(0.2)
    times = [first_token({"prompt": f"A new question {i}"}) for i in range(5)]
    [thread.join() for thread in busy]
    alone = [first_token({"prompt": f"Another question {i}"}) for i in range(5)]
    print(f"first token of a short prompt: alone {statistics.median(alone) * 1000:.1f} ms, beside {streams - 1} texts {statistics.median(times) * 1000:.1f} ms")
    # Second turns in turn: a few tokens after about 10 and after about 10,000, as text and as tokens.
    sentence = "The people of the United States are at peace. "
    for kind, before in [
        ("text", {length: sentence * (length // 10) for length in (10, 10_000)}),
        ("tokens", {length: [1 + i % 900 for i in range(length)] for length in (10, 10_000)}),
    ]:
        seconds = {length: [] for length in before}
        for prompt in before.values():
            ask({"prompt": prompt, "max_tokens": 1})
        for i in range(41):
            for length, prompt in before.items():
                more = f"And {i} then" if kind == "text" else [5 + i, 6, 7, 8, 9]
                seconds[length].append(first_token({"prompt": prompt + more}))
        short, long = (statistics.median(times) * 1000 for times in seconds.values())
        print(f"first token of a second turn as {kind}: {short:.2f} ms, with a long past {long:.2f} ms: {long / short:.3f} times")


def numbers():
    connection = http.client.HTTPConnection(HOST, int(PORT), timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return {name: float(value) for name, value in re.findall(r"^(\w+)(?:\{.*\})? (\S+)$", text, re.M)}


async def abuse(requests):
    expected = ask({"prompt": "The whale", "max_tokens": 3, "temperature": 0})["choices"][0]["text"]
    dice, good, failed = random.Random(1), 0, []
    room = asyncio.Semaphore(100)

    async def one(i):
        nonlocal good
        kind = dice.choice(["good"] * 4 + ["bad", "nonsense", "leave", "half", "slow"])
        body = {
            "good": {"prompt": "The whale", "max_tokens": 3, "temperature": 0},
            "leave": {"prompt": f"Leave {i % 50}", "max_tokens": 100_000, "stream": True},
        }.get(kind, {"prompt": "x", "max_tokens": -1})
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode()
        async with room:
            reader, writer = await asyncio.open_connection(HOST, int(PORT))
            try:
                if kind == "nonsense":
                    writer.write(dice.randbytes(50) + b"\r\n\r\n")
                    await reader.read()
                elif kind == "half":
                    writer.write(head + data[: len(data) // 2])
                    await writer.drain()
                elif kind == "leave":
                    writer.write(head + data)
                    await reader.readline()
                elif kind == "slow":
                    for byte in (head + data)[:20]:
                        writer.write(bytes([byte]))
                        await writer.drain()
                else:
                    writer.write(head + data)
                    answer = await reader.read()
                    status = int(answer.split(b" ", 2)[1])
                    if kind == "bad" and status != 400:
                        failed.append(answer)
                    elif kind == "good" and status != 429:
                        text = json.loads(answer.split(b"\r\n\r\n", 1)[1])["choices"][0]["text"]
                        good += 1
                        failed.extend([answer] * (text != expected))
            except (ConnectionError, ValueError) as error:
                failed.append((kind, error)) if kind == "good" else None
            finally:
                writer.close()

    # Once to reach the size that it keeps.
    await asyncio.gather(*[one(i) for i in range(2000)])
    before, start = numbers(), time.perf_counter()
    for first in range(0, requests, 5000):
        await asyncio.gather(*[one(i) for i in range(first, min(first + 5000, requests))])
    took = time.perf_counter() - start
    await asyncio.sleep(1)
    after = numbers()
    print(f"{requests} requests in {took:.0f} s, {good} good answers, {len(failed)} wrong")
    for name in ("process_resident_memory_bytes", "elapid_requests_running", "elapid_requests_waiting"):
        print(f"{name}: {before[name]:.0f} before, {after[name]:.0f} after")
    assert not failed, failed[:3]
    assert after["elapid_requests_running"] == after["elapid_requests_waiting"] == 0


count = int(sys.argv[3]) if len(sys.argv) > 3 else None
if sys.argv[2] == "speed":
    speed(count or 8)
else:
    asyncio.run(abuse(count or 100_000))
