"""``python -m examples.crawler``: crawls a web site that runs in this process, in rounds.

Each page is a pipeline of two stages: fetch, then look for links. Each round is a group of such pipelines, and the
stage after it merges what they found. A limit keeps the workers from asking for more than four pages at a time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter

import greenroom

from .site import MOST_AT_A_TIME, PAGES, serving

PATIENCE_MS = 60_000


def main() -> int:
    """Runs the example in a temporary folder; 0 if all pages were found and the limit was kept."""
    with tempfile.TemporaryDirectory() as name, serving() as site:
        os.environ["CRAWLER_FOLDER"] = name
        command = ["worker", "examples.crawler.tasks", "-p", "2", "-t", "8", "--skip-logging"]
        worker = subprocess.Popen([sys.executable, "-m", "greenroom", *command])  # noqa: S603  # ours
        try:
            total = crawl(f"http://127.0.0.1:{site.server_address[1]}")
        finally:
            worker.terminate()
            worker.wait()
    print(f"{total['pages']} pages with {total['words']:,} words in {total['rounds']} rounds, {total['failed']} failed")
    print(f"never more than {site.most} requests at a time")
    return 0 if total["pages"] == PAGES and site.most <= MOST_AT_A_TIME else 1


def crawl(base: str) -> Counter[str]:
    """Follows all links, round by round; what was found."""
    from examples.crawler import tasks

    seen, todo = {"/page/1"}, ["/page/1"]
    total: Counter[str] = Counter()
    while todo:
        pages = [tasks.fetch.message(base + path) | tasks.links_of.message(path) for path in todo]
        round_ = greenroom.group(pages, on_error="collect") | tasks.merge.message()
        found = round_.run().get_result(block=True, timeout=PATIENCE_MS)
        total.update(pages=found["pages"], failed=found["failed"], words=found["words"], rounds=1)
        todo = [path for path in found["links"] if path not in seen]
        seen.update(todo)
    tasks.broker.close()
    return total


if __name__ == "__main__":
    sys.exit(main())
