"""Load on the service: many clients, every answer checked against its own prompt, memory afterwards, and the overhead.

    python benchmarks/serving.py [--clients 200] [--seconds 60]

Each client asks questions whose greedy answers were computed before in this process, one after another, with no pause;
a 429 is waited for as its Retry-After says. The overhead is the service's tokens a second against the same questions
handed to the engine directly, as many at a time, in this process. Clients take their share of the same processors; what
the service itself costs is its CPU time a token beside the engine's (with OMP_NUM_THREADS=1, as threads that wait for
each other use CPU time too).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from random import Random
from typing import Any

from xreasoner.engines.driving import finished
from xreasoner.reasoner import Reasoner

PEOPLE = ["Ana", "Ben", "Cara", "Dan", "Eva"]


def questions(n: int) -> list[str]:
    """Short problems, no two alike in their numbers."""
    rng = Random(0)
    found = []
    for k in range(n):
        names = rng.sample(PEOPLE, 3)
        facts = ", ".join(f"{name} has {rng.randint(1, 30)}" for name in names)
        ending = ("By how much does the highest score exceed the lowest?", "Who has more?")[k % 2]
        found.append(f"{facts}. {ending}")
    return found


def expected(asked: list[str], clients: int) -> tuple[dict[str, str], float, float]:
    """The whole reply to each question; the engine's own tokens a second, and milliseconds of CPU time a token, with so
    many at a time."""
    reasoner = Reasoner("tiny", thinking_budget=160, answer_budget=24)
    requests = [(question, reasoner.request(question)) for question in asked]
    list(finished(reasoner.engine, iter(requests[:20]), clients))
    begun, used, tokens, found = time.monotonic(), time.process_time(), 0, {}
    for question, outcome in finished(reasoner.engine, iter(requests), clients):
        if isinstance(outcome, Exception):
            raise outcome
        found[question] = outcome[0].answer + "\n" + outcome[0].thought
        tokens += len(outcome[0].token_ids)
    return found, tokens / (time.monotonic() - begun), 1000 * (time.process_time() - used) / tokens


async def load(url: str, answers: dict[str, str], clients: int, seconds: float) -> dict[str, Any]:
    """What happened in so many seconds with so many clients."""
    statuses: Counter[str] = Counter()
    latencies: list[float] = []
    wrong: list[str] = []
    tokens, asked, end = 0, list(answers), time.monotonic() + seconds
    host = url.removeprefix("http://")

    async def one(mine: int) -> None:
        nonlocal tokens
        rng, connection = Random(mine), None
        while time.monotonic() < end:
            question = rng.choice(asked)
            body = {"messages": [{"role": "user", "content": question}], "prompt": "default"}
            begun = time.monotonic()
            try:
                connection = connection or await asyncio.open_connection(*host.split(":"))
                status, headers, content = await post(*connection, host, json.dumps(body).encode())
            except (OSError, EOFError) as error:
                statuses[type(error).__name__] += 1
                connection = None
                continue
            statuses[status] += 1
            if status == "429":
                await asyncio.sleep(float(headers["retry-after"]))
                continue
            if status != "200":
                wrong.append(content[:200].decode())
                continue
            found = json.loads(content)
            said = found["choices"][0]["message"]
            latencies.append(time.monotonic() - begun)
            tokens += found["usage"]["completion_tokens"]
            if said["content"] + "\n" + (said["reasoning"] or "") != answers[question]:
                wrong.append(f"{question} → {said}")
        if connection:
            connection[1].close()

    begun = time.monotonic()
    await asyncio.gather(*(one(k) for k in range(clients)))
    spent = time.monotonic() - begun
    return {
        "clients": clients,
        "seconds": round(spent, 1),
        "statuses": dict(statuses),
        "wrong": wrong[:5],
        "wrong_count": len(wrong),
        "latency_median": round(statistics.median(latencies), 2) if latencies else None,
        "latency_p99": round(sorted(latencies)[int(0.99 * len(latencies))], 2) if latencies else None,
        "tokens": tokens,
        "tokens_per_s": round(tokens / spent, 1),
    }


async def post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, body: bytes
) -> tuple[str, dict[str, str], bytes]:
    """Status, headers and content. By hand: a client library takes as much of the processors as the service."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines if line)
    return first.split()[1], headers, await reader.readexactly(int(headers["content-length"]))


def memory(pid: int) -> float:
    """Resident megabytes."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_seconds(pid: int) -> float:
    """What a process has used of the processors."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--questions", type=int, default=400)
    given = parser.parse_args()
    answers, alone, alone_ms = expected(questions(given.questions), given.clients)
    command = [sys.executable, "-m", "xreasoner.cli", "serve", "tiny", "--port", "0", "--budget", "160"]
    with subprocess.Popen([*command, "--answer-budget", "24"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        url = server.stdout.readline().split()[1].removesuffix("/health")
        while "serving" not in server.stdout.readline():
            pass
        asyncio.run(load(url, answers, given.clients, given.seconds / 6))
        first, used = memory(server.pid), cpu_seconds(server.pid)
        found = asyncio.run(load(url, answers, given.clients, given.seconds))
        last, used = memory(server.pid), cpu_seconds(server.pid) - used
        server.terminate()
    found |= {"memory_mb": [round(first), round(last)], "engine_tokens_per_s": round(alone, 1)}
    found |= {
        "cpu_ms_per_token": round(1000 * used / found["tokens"], 4),
        "engine_cpu_ms_per_token": round(alone_ms, 4),
    }
    found["share_of_engine"] = round(found["tokens_per_s"] / alone, 3)
    print(json.dumps(found, indent=1, ensure_ascii=False))
    failed = set(found["statuses"]) - {"200", "429"}
    if failed or found["wrong_count"]:
        raise SystemExit(f"failed: {failed or 'wrong answers'}")


if __name__ == "__main__":
    main()
