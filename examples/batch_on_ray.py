"""Answer many prompts with Ray Data: workers that share one limit.

Each worker has a router of its own. The routers share their rate limit and what they
know of the providers over Redis. A prompt's answer is a file of its own, written before
the next one is: after a crash, start the script again, and only the rest is asked.

    pip install "ray[data]" langchain-openai "langchain-retryrouter[redis]"
    python examples/batch_on_ray.py prompts.jsonl answers/ --redis redis://localhost

A line of `prompts.jsonl` is `{"id": "7", "prompt": "..."}`; `answers/7.json` is its
answer. On several machines, `answers/` must be a folder that all of them see.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from langchain_core.messages import BaseMessage
from langchain_openai import ChatOpenAI
from ray.data import ActorPoolStrategy, DataContext

from langchain_retryrouter import AttemptLog, RateLimit, RetryPolicy, RetryRouter
from langchain_retryrouter.stores import RedisStore


def router_of(options: argparse.Namespace) -> RetryRouter:
    """A worker's router. Change this to the models that you use."""
    store = RedisStore(options.redis, namespace=options.namespace)
    return RetryRouter(
        routes=[
            ChatOpenAI(model=model, base_url=options.base_url)
            for model in options.model
        ],
        # A batch can wait: for a long Retry-After, and while every provider is down.
        retry_policy=RetryPolicy(max_retries=8, max_delay=30, max_retry_after=300),
        store=store,
        rate_limit=RateLimit(
            requests_per_minute=options.requests_per_minute, name="batch", store=store
        ),
    )


class Worker:
    """Asks the prompts of one batch at a time; Ray makes one object a worker."""

    def __init__(self, options: argparse.Namespace) -> None:
        """In the worker's process."""
        self._router = router_of(options)
        self._folder = Path(options.answers)
        self._concurrency = options.concurrency

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Answer what has no answer yet; a batch comes again if its worker died."""
        prompts = dict(zip(batch["id"], batch["prompt"], strict=True))
        files = {one: self._folder / f"{one}.json" for one in prompts}
        rest = [one for one, file in files.items() if not file.exists()]
        failures = dict.fromkeys(prompts, "")
        for place, answer in self._router.batch_as_completed(
            [prompts[one] for one in rest],
            {"max_concurrency": self._concurrency},
            return_exceptions=True,
        ):
            if isinstance(answer, Exception):
                failures[rest[place]] = type(answer).__name__
            else:
                write(files[rest[place]], answer)
        return {"id": list(failures), "failure": list(failures.values())}


def write(file: Path, answer: BaseMessage) -> None:
    """A whole file or none, even if the process is killed meanwhile."""
    part = file.with_suffix(f".{os.getpid()}.part")
    log = answer.response_metadata["retryrouter"]
    part.write_text(json.dumps({"answer": answer.text, "log": log}))
    part.replace(file)


def failures_of(
    rows: list[dict[str, str]], options: argparse.Namespace
) -> Iterator[str]:
    """What went wrong with each prompt, or "", in the order in which they are done."""
    DataContext.get_current().enable_progress_bars = False
    done = ray.data.from_items(rows).map_batches(
        Worker,
        fn_constructor_args=[options],
        batch_size=options.batch_size,
        compute=ActorPoolStrategy(size=options.workers),
        num_cpus=0.1,  # A worker waits for providers nearly all the time.
    )
    for row in done.iter_rows():
        yield row["failure"]


def main() -> None:
    """Ask what has no answer yet, with a line of progress, and sum up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", help="a JSON object with an id and a prompt a line")
    parser.add_argument("answers", help="the folder of the answers")
    parser.add_argument("--redis", required=True, help="such as redis://localhost")
    parser.add_argument("--namespace", default="batch")
    parser.add_argument("--model", action="append", help="again for each further route")
    parser.add_argument("--base-url", help="of the models; default OPENAI_BASE_URL")
    parser.add_argument("--requests-per-minute", type=float, default=600)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--concurrency", type=int, default=16, help="of each worker")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--cpus", type=int, help="for Ray on this machine")
    options = parser.parse_args()
    options.model = options.model or ["gpt-5-mini", "gpt-4.1-mini"]

    folder = Path(options.answers)
    folder.mkdir(parents=True, exist_ok=True)
    with Path(options.prompts).open() as lines:
        rows = [json.loads(line) for line in lines]
    done = {path.stem for path in folder.glob("*.json")}
    rest = [row for row in rows if row["id"] not in done]
    print(f"{len(rows)} prompts, {len(rows) - len(rest)} answered before", flush=True)

    ray.init(num_cpus=options.cpus, log_to_driver=False)
    began = shown = time.monotonic()
    failures = Counter[str]()
    for count, failure in enumerate(failures_of(rest, options) if rest else (), 1):
        failures[failure] += 1
        if time.monotonic() > shown + 1 or count == len(rest):
            shown = time.monotonic()
            rate, failed = count / (shown - began), count - failures[""]
            print(f"{count} of {len(rest)}, {rate:.0f}/s, {failed} failed", flush=True)
    logs = [json.loads(file.read_text())["log"] for file in folder.glob("*.json")]
    print(AttemptLog.summarize(logs))
    for failure, count in failures.items():
        if failure:
            print(
                f"{count} without an answer: {failure}; start again to ask them again"
            )


if __name__ == "__main__":
    main()
