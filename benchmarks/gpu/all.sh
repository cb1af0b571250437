#!/usr/bin/env bash
# Every check that needs a GPU, in one call of at most ten minutes:
#
#     OUT=gpu-results PYTHON=python3 benchmarks/gpu/all.sh
#
# Writes a log and, where there are figures, a JSON file for each part to $OUT, and summary.json. Needs torch with CUDA, Triton, numpy and
# pytest; nothing is downloaded. Without a GPU it says so in one line and ends with 0. Ends with 1 where a part failed.
set -u
cd "$(dirname "$0")/../.."
OUT=${OUT:-gpu-results}
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
unset TRITON_INTERPRET

"$PYTHON" - <<'CHECK' || exit 0
import sys
try:
    import torch
except ImportError:
    sys.exit(print("skipped: torch is not installed") or 1)
if not torch.cuda.is_available():
    sys.exit(print(f"skipped: torch {torch.__version__} sees no CUDA device") or 1)
from importlib.util import find_spec
missing = [name for name in ("triton", "pytest", "numpy") if find_spec(name) is None]
print(torch.cuda.get_device_name(), "torch", torch.__version__, *(f"| missing: {name}" for name in missing))
CHECK

mkdir -p "$OUT"
failed=0
summary=""

part() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 began=$SECONDS state
    shift 2
    echo "== $name (at most $limit s)"
    timeout --kill-after=5 "$limit" "$@" 2>&1 | tee "$OUT/$name.log"
    case ${PIPESTATUS[0]} in
        0) state=passed ;;
        124 | 137) state="out of time" failed=1 ;;
        *) state=failed failed=1 ;;
    esac
    if tail -n 1 "$OUT/$name.log" | grep -q '^{'; then tail -n 1 "$OUT/$name.log" >"$OUT/$name.json"; fi
    echo "== $name: $state after $((SECONDS - began)) s"
    summary="$summary${summary:+, }\"$name\": {\"state\": \"$state\", \"seconds\": $((SECONDS - began))}"
    echo "{$summary}" >"$OUT/summary.json"
}

# 120 + 170 + 150 + 100 s, and 5 s each to end: below ten minutes
part tests 120 "$PYTHON" -m pytest tests/gpu --noconftest -p no:cacheprovider
part loss 170 "$PYTHON" benchmarks/gpu/loss.py --out "$OUT/loss.json" --json
if [ -f benchmarks/one_step.py ]; then
    part one_step 150 "$PYTHON" benchmarks/one_step.py --device cuda --model minilm --tokens 64 --chunk-tokens 131072 --json
else
    echo "== one_step: benchmarks/one_step.py is not there"
fi
part blocks 100 "$PYTHON" benchmarks/gpu/blocks.py --json
cat "$OUT/summary.json"
exit $failed
