#!/bin/bash
# X-Reasoner on a Slurm cluster: four nodes train, one writes the rollouts. `sbatch recipes/cluster/slurm.sh`.
# Another recipe, folder or split of the nodes: RECIPE=x-reasoner-3b OUT=/shared/runs/3b TRAINERS=1 sbatch --nodes=2 …
# Ten minutes before its time limit it saves, and is put back into the queue; it goes on from its newest checkpoint.
#SBATCH --job-name=x-reasoner
#SBATCH --nodes=5
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=72:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

RECIPE=${RECIPE:-x-reasoner-7b}
MODEL=${MODEL:-Qwen/Qwen2.5-VL-7B-Instruct}
OUT=${OUT:-$PWD/runs/$RECIPE}      # on a file system that every node sees: servers read the new weights from it
TRAINERS=${TRAINERS:-4}
GPUS=${GPUS:-8}
export HF_HOME=${HF_HOME:-$PWD/hub} TOKENIZERS_PARALLELISM=false

mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
HEAD=${NODES[0]}
TRAIN=$(IFS=,; echo "${NODES[*]:0:$TRAINERS}")

# one server a card on the nodes that do not train
URLS=()
for node in "${NODES[@]:$TRAINERS}"; do
  srun --nodes=1 --ntasks=1 --nodelist="$node" --overlap bash -c '
    for ((card = 0; card < '"$GPUS"'; card++)); do
      CUDA_VISIBLE_DEVICES=$card VLLM_SERVER_DEV_MODE=1 vllm serve '"$MODEL"' --port $((8000 + card)) \
        --dtype bfloat16 --max-model-len 8192 --limit-mm-per-prompt "{\"image\": 0}" &
    done
    wait' &
  for ((card = 0; card < GPUS; card++)); do URLS+=("http://$node:$((8000 + card))/v1"); done
done
for url in "${URLS[@]}"; do
  until curl --silent --fail --output /dev/null "${url%/v1}/health"; do sleep 5; done
done

ROLLOUTS=()
if [ ${#URLS[@]} -gt 0 ]; then
  ROLLOUTS=(--set "stages.sft+rl.rollouts={urls: [$(IFS=,; echo "${URLS[*]}")]}")
fi

srun --nodes="$TRAINERS" --ntasks="$TRAINERS" --nodelist="$TRAIN" --overlap \
  torchrun --nnodes="$TRAINERS" --nproc-per-node="$GPUS" --shutdown-timeout=540 \
  --rdzv-backend=c10d --rdzv-endpoint="$HEAD:29500" --rdzv-id="$SLURM_JOB_ID" \
  -m xreasoner.cli train "$RECIPE" --out "$OUT" --resume "${ROLLOUTS[@]}" &
TRAINING=$!

# Slurm tells this shell alone: the servers must stay until the trainers have ended their step and saved, for which
# torchrun would give them 30 seconds
again() {
  kill -TERM "$TRAINING"
  wait "$TRAINING" || true
  scontrol requeue "$SLURM_JOB_ID"
}
trap again TERM
wait "$TRAINING"
