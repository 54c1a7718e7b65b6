#!/usr/bin/env bash
# Set up the environment, and run what a newcomer runs first.
#
#   bash setup.sh              the environment in .venv (again: seconds)
#   bash setup.sh demo         the environment, then the main job on the built-in world with the shipped weights
#   bash setup.sh test         the environment, then the whole test suite
#   bash setup.sh cityscapes   download Cityscapes into data/Cityscapes with csDownload (needs an account)
#
# Needs Python 3.11 or newer, nothing else. PYTHON=/path/to/python chooses one. TORCH_BACKEND=cpu, cu128, ... chooses
# the build of PyTorch; by default the one that suits the machine, where that index can be reached.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf '%s\n' "$*"; }
die() { printf 'setup.sh: %s\n' "$*" >&2; exit 2; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s' "$candidate"
            return
        fi
    done
    die "no Python 3.11 or newer found: install one, or name it with PYTHON=/path/to/python bash setup.sh"
}

environment() {
    local wanted stamp=.venv/.complete
    wanted=$(cksum pyproject.toml)
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && .venv/bin/python -c 'import torch' 2>/dev/null; then
        say "The environment in .venv is there."
        return
    fi
    local python
    python=$(find_python)
    say "Making the environment in .venv with $("$python" --version) ..."
    # A half-made one, as where Debian's python3-venv was missing, has Python and no pip
    .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv .venv || die "could not make .venv; on Debian: apt install python3-venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check uv
    # torch and torchvision come as a pair; the build for this machine where its index answers, else the registry's.
    if ! torch_pair --torch-backend="${TORCH_BACKEND:-$(backend)}" 2>.venv/torch.log; then
        say "PyTorch's own index gave no build (.venv/torch.log says why); taking the registry's."
        torch_pair
    fi
    .venv/bin/uv pip install --compile-bytecode --quiet --python .venv/bin/python --requirement pyproject.toml --extra dev
    verify
    printf '%s' "$wanted" >"$stamp"
    say "Done. Activate it with: source .venv/bin/activate"
}

torch_pair() { UV_HTTP_TIMEOUT=120 UV_HTTP_RETRIES=1 .venv/bin/uv pip install --compile-bytecode --quiet --python .venv/bin/python "$@" 'torch>=2.11' torchvision; }

backend() { if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then echo auto; else echo cpu; fi; }

verify() {
    .venv/bin/python - <<'PY'
import torch
import torchvision
from model import PRESETS, Pix2SeqD

config = PRESETS["tiny"]
model = Pix2SeqD(config).eval()
image, noise = torch.rand(1, 3, *config.image_size), torch.randn(1, config.bits, *config.mask_size)
with torch.inference_mode():
    output = model(image, noise, torch.ones(1), torch.zeros(1, 2 * config.bits, *config.mask_size))
assert output.shape == (1, sum(config.code_sizes), *config.mask_size)
where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, on {where}: one forward pass is fine")
PY
}

demo() {
    local world=results/demo/world out=results/demo/output
    .venv/bin/python -m data.streets --output_folder "$world" --split test --videos 3 --frames 24
    .venv/bin/python inference.py --input_folder "$world/kitti_out/video_sequence/test" --output_folder "$out" \
        --checkpoint results/pretrained/model-tiny.pt --overlay mp4 html
    .venv/bin/python evaluate.py --predictions "$out" --ground_truth "$world" --split test --json results/demo/figures.json
    say ""
    say "Masks, tracks.jsonl, films and pages are in $out. Open this page in a browser:"
    ls "$out"/*_view.html | head -1
}

cityscapes() {
    mkdir -p data/Cityscapes
    say "csDownload asks for the name and password of your account at cityscapes-dataset.com; nothing is stored by us."
    .venv/bin/csDownload --destination_path data/Cityscapes leftImg8bit_trainvaltest.zip gtFinePanopticParts_trainval.zip
}

case "${1:-}" in
    "") environment ;;
    demo) environment; demo ;;
    test) environment; shift; exec .venv/bin/python -m pytest -n "$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)" --dist loadfile "$@" ;;
    cityscapes) environment; cityscapes ;;
    *) die "unknown command $1; one of: demo, test, cityscapes, or none" ;;
esac
