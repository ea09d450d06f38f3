"""The doctor on many short rows: processor time and peak memory of the near-duplicate search, and of every check.

The claim: near duplicates among 200,000 rows within 3 minutes and 2 GB on two cores, and a million rows in memory that
does not grow with what they say. Rows are runs of words from real questions and answers (Alpaca, GSM8K), 25 words in
the mean; every twentieth is an exact copy, every twentieth a near one (two words exchanged).

    python benchmarks/doctor_cpu.py --rows 200000 1000000 --name doctor_cpu-2026-11-28
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


def write_rows(path: Path, count: int, shared: Path) -> None:
    """Write rows of real words; the same ones every time."""
    pairs = [(r["instruction"], r["output"]) for r in json.loads((shared / "alpaca/alpaca_small.json").read_text())]
    with gzip.open(shared / "gsm8k/train.jsonl.gz", "rt", encoding="utf-8") as stream:
        pairs += [(row["question"], row["answer"]) for row in map(json.loads, stream)]
    words = [word for pair in pairs for text in pair for word in text.split()]
    draw = random.Random(0)
    before: list[list[str]] = [["one"], ["two"]]
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            if number % 20 == 19:
                said = before
            elif number % 20 == 9:
                said = [list(part) for part in before]
                for _ in range(2):
                    said[1][draw.randrange(len(said[1]))] = draw.choice(words)
            else:
                starts = [draw.randrange(len(words) - 20) for _ in range(2)]
                said = [words[at : at + draw.randrange(8, 18)] for at in starts]
            before = said
            row = {"instruction": " ".join(said[0]) + "?", "input": "", "output": " ".join(said[1]) + "."}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def measure(path: Path, only: str) -> None:
    """Examine a file in this process and print what it took."""
    from luthier.data.spec import DataSpec
    from luthier.doctor.checks import all_checks
    from luthier.doctor.checks.duplicates import Duplicates
    from luthier.doctor.examine import examine

    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started, started_cpu = time.monotonic(), time.process_time()
    found = examine(DataSpec(path=str(path)), checks=[Duplicates()] if only == "duplicates" else all_checks())
    result = {
        "checks": only,
        "rows": found.rows,
        "cpu_seconds": round(time.process_time() - started_cpu, 1),
        "seconds": round(time.monotonic() - started, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "mib_before": round(base, 1),
        "counts": dict(found.counts),
    }
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000])
    parser.add_argument("--checks", nargs="+", default=["duplicates", "all"], choices=["duplicates", "all"])
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--name", help="write benchmarks/results/NAME.json")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.file is not None:
        measure(wanted.file, wanted.checks[0])
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for count in wanted.rows:
            path = Path(folder) / f"{count}.jsonl"
            write_rows(path, count, wanted.shared)
            for checks in wanted.checks:
                # A process of its own, since its peak memory is what is asked.
                command = [sys.executable, __file__, "--file", str(path), "--checks", checks]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                results.append(json.loads(done.stdout))
                print(results[-1], flush=True)
    if wanted.name:
        from luthier.run.environment import collect_environment

        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        report = {"commit": commit.stdout.strip(), "environment": collect_environment(), "results": results}
        target = ROOT / "benchmarks" / "results" / f"{wanted.name}.json"
        target.write_text(json.dumps(report, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
