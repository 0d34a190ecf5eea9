#!/usr/bin/env bash
# Pre-training on several machines, by hand. Run it on every machine, with the same first three values:
#   NODES=2 GPUS=4 HOST=first-machine:29500 docs/multi_node.sh --dataset_dir /path/to/cts --output_dir /shared/run
set -euo pipefail
: "${NODES:?number of machines}" "${GPUS:?processes per machine}" "${HOST:?address:port of one of the machines}"
cd "$(dirname "$0")/.."
configs=bundles/mim_pretrain/configs
# a restart must not find addresses of processes that are dead: no common store (docs/reliability.md)
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun --nnodes "$NODES" --nproc_per_node "$GPUS" --rdzv_backend c10d --rdzv_endpoint "$HOST" \
  --rdzv_id "${RUN_ID:-mim}" -m monai.bundle run \
  --config_file "['$configs/train.json','$configs/multi_gpu_train.json']" "$@"
