#!/usr/bin/env bash
# The recipe of `small`, the first edition's and single changes, at a size that two cores train in minutes: 300 steps of
# 8 on Cityscapes' frames, PQ and mIoU of 48 held-out ones in the last line of each log.
#
#     benchmarks/small_recipe.sh DATA_ROOT RESULTS [SEED ...]
set -euo pipefail
root=$(realpath "$1") results=$(realpath -m "$2")
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/.."
train() { # name, flags
    local name=$1
    shift
    .venv/bin/python pretrain.py --preset small --backbone cspnet --backbone_lr 0.06 --data_root "$root" --cache none \
        --image_size 96 192 --encoder_dim 128 --encoder_depth 2 --encoder_heads 4 --map_channels 64 --dim 64 \
        --denoiser_depth 2 --transformer_dim 128 --transformer_heads 4 --batch_size 8 --steps 300 --warmup 30 \
        --validate_every 0 --validate_videos 4 --validate_frames 12 --save_every 300 --device cpu --quiet \
        --results_folder "$results/$name" "$@"
    echo "$name: $(tail -n 1 "$results/$name/log.jsonl")"
}
for seed in "${@:-1}"; do
    train "new-$seed" --seed "$seed"
    train "first-edition-$seed" --seed "$seed" --optimizer adamw --lr 1e-4 --slot_order random --loss_stride 1 \
        --no-stuff_by_class --instance_weight 0.2 --history_absent 0 --synthetic_history 0 --scale_range 0.8 1.5 --focus 0 --paste 0 \
        --sampling 20 8 0
done
train adamw --seed 1 --optimizer adamw --lr 1e-3
train random-slots --seed 1 --slot_order random
train resnet50-from-scratch --seed 1 --backbone resnet50 --backbone_weights none --backbone_lr 1
