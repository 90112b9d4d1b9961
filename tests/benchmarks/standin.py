"""A program that speaks `benchmarks.peer`'s protocol without torch.

The job says what it answers: {"parameters": n, "seconds": s}, {"fail": message} at the start,
{"fail_later": message} at the first step, or {"quit": true}, which ends it without an answer.
"""

import json
import sys


def answer(value):
    print(json.dumps(value), flush=True)


job = json.loads(sys.stdin.readline())
if "fail" in job:
    answer({"error": job["fail"]})
elif "quit" in job:
    sys.exit(3)
else:
    answer({"parameters": job["parameters"], "device": "none"})
    for number, _ in enumerate(sys.stdin, start=1):
        if "fail_later" in job:
            answer({"error": job["fail_later"]})
        else:
            answer({"seconds": job["seconds"] * number, "peak_bytes": 2**20 * number})
