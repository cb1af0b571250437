"""Kills the demo again and again with SIGKILL, starts the same command each time, and compares what it ends with.

    python benchmarks/kill_demo.py [--kills 12] [--json]

A small demo (model splade-tiny, few pairs) runs once undisturbed, in its own cache; then a second time in another cache, killed at
moments drawn from a seed, spread over all stages. Both must end with the same fingerprints of every folder and the same run files.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = {"model": "splade-tiny", "documents": 1400, "pairs": 40, "written": 3, "batch_size": 8, "max_length": 32}


def start(out: Path, cache: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from negatron.cli import main; main()", "demo", "--out", str(out)]
    command += [part for key, value in SIZES.items() for part in ("--set", f"{key}={value}")]
    return subprocess.Popen(command, stdout=log.open("ab"), stderr=subprocess.STDOUT, env=os.environ | {"NEGATRON_CACHE": str(cache)})


def artefacts(out: Path) -> dict[str, str]:
    """Folder -> fingerprint of its contents, for every folder with a manifest; and the runs and the table."""
    found = {str(p.parent.relative_to(out)): json.loads(p.read_text())["fingerprint"] for p in out.rglob("manifest.json")}
    return found | {"table.txt": (out / "table.txt").read_text()}


def stage_of(log: Path) -> str:
    return (re.findall(r"^\[\d+/\d+\] .*", log.read_text(errors="replace"), re.MULTILINE) or ["before the first stage"])[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as work_name:
        work = Path(work_name)
        shared = Path(os.environ.get("NEGATRON_CACHE", Path.home() / ".cache" / "negatron"))
        for cache in ("undisturbed", "killed"):
            for part in ("wheels", "models", "data"):  # what is only downloaded and unpacked is not what this is about
                if (shared / part).is_dir():
                    shutil.copytree(shared / part, work / cache / part)
        began = time.monotonic()
        if start(work / "one", work / "undisturbed", work / "one.log").wait():
            sys.exit((work / "one.log").read_text()[-2000:])
        whole = time.monotonic() - began
        stages = []
        for _ in range(options.kills):
            process = start(work / "two", work / "killed", work / "two.log")
            try:
                process.wait(timeout=draw.uniform(6, 10 + whole / 4))
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                stages.append(stage_of(work / "two.log"))
                print("killed in", stages[-1], flush=True)
        if start(work / "two", work / "killed", work / "two.log").wait():
            sys.exit((work / "two.log").read_text()[-2000:])
        one, two = artefacts(work / "one"), artefacts(work / "two")
        different = sorted(name for name in one | two if one.get(name) != two.get(name))
        print(f"{len(one)} artefacts, {len(stages)} kills, different: {different or 'none'}; undisturbed {whole:.0f} s")
        if options.json:
            print(json.dumps({"artefacts": len(one), "kills": stages, "different": different}))
        sys.exit(bool(different))


if __name__ == "__main__":
    main()
