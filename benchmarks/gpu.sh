#!/usr/bin/env bash
# What a GPU makes of the presets, in at most eight minutes, on a machine that has PyTorch for CUDA:
#
#     benchmarks/gpu.sh            with the built-in world
#     benchmarks/gpu.sh DATA       with training frames in Cityscapes' layout: a .zip, a .tar or a folder
#
# Writes results/gpu/gpu.json and gpu.md. Other packages are installed where they are missing.
set -euo pipefail
data=${1:+$(realpath "$1")}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
[ -x "$python" ] || python=$(command -v python3 || command -v python)
packages="accelerate einops ema_pytorch huggingface_hub safetensors filelock av PIL tqdm torchvision pytest psutil"
if ! "$python" -c "import ${packages// /, }" 2>/dev/null; then
    torch=$("$python" -c 'import torch; print(f"torch=={torch.__version__}")') # which is to stay as it is
    "$python" -m pip install --quiet "$torch" accelerate einops ema-pytorch huggingface_hub safetensors filelock av pillow tqdm \
        torchvision pytest psutil || true
fi
exec "$python" -m benchmarks.gpu ${data:+"$data"}
