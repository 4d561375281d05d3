"""Times async actors in this process: a hundred that sleep 0.1 s, and thousands of 1 ms beside a bare loop."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import greenroom
from greenroom.brokers.sqlite import SqliteBroker

from .. import recorder

SLEEPERS = 100
CONCURRENCY = 100
LOOK_S = 0.001

broker = SqliteBroker(Path(os.environ[recorder.FOLDER_VARIABLE]) / "queue.db")
done = 0


@greenroom.actor(broker=broker)
async def sleep_ms(ms: int) -> None:
    """Sleeps, and counts: there is one loop, so that nothing else counts meanwhile."""
    global done
    await asyncio.sleep(ms / 1000)
    done += 1


def run(messages: int, ms: int) -> float:
    """Seconds from the start of a worker, whose queue is full, to the end of the last coroutine."""
    global done
    done = 0
    sleep_ms.send_many((ms,) for _ in range(messages))
    worker = greenroom.Worker(broker, worker_threads=1, concurrency=CONCURRENCY)
    started_s = time.perf_counter()
    worker.start()
    while done < messages:
        time.sleep(LOOK_S)
    elapsed_s = time.perf_counter() - started_s
    worker.stop()
    return elapsed_s


async def bare(messages: int, ms: int) -> float:
    """The same coroutines on a bare loop, a task each, a hundred at a time."""
    places = asyncio.Semaphore(CONCURRENCY)
    started_s = time.perf_counter()

    async def one() -> None:
        await sleep_ms(ms)
        places.release()

    tasks = []
    for _ in range(messages):
        await places.acquire()
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    return time.perf_counter() - started_s


def main() -> None:
    """The answer is one line of JSON, in seconds."""
    messages = int(sys.argv[1])
    found = {
        "sleepers": run(SLEEPERS, 100),
        "ours": run(messages, 1),
        "bare": asyncio.run(bare(messages, 1)),
    }
    broker.close()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
