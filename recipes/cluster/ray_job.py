"""X-Reasoner on a Ray cluster: some nodes train under torchrun, the others serve the rollouts with vLLM.

    ray job submit --working-dir . -- python recipes/cluster/ray_job.py x-reasoner-7b /shared/runs/x-reasoner-7b

Ray places the processes and no more: training is the same `torchrun` line as elsewhere, so a run that was begun here
goes on under Slurm, and the other way round. The run's folder must be on a file system that every node sees.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import urllib.request

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("out")
    parser.add_argument("--model", default="Qwen/Qwen2.5-VL-7B-Instruct")
    parser.add_argument("--trainers", type=int, default=4, help="nodes that train")
    parser.add_argument("--servers", type=int, default=1, help="nodes that serve")
    parser.add_argument("--gpus", type=int, default=8, help="cards of a node")
    return parser.parse_args()


@ray.remote
class Node:
    """One whole node."""

    def address(self) -> str:
        return str(ray.util.get_node_ip_address())

    def serve(self, model: str, gpus: int) -> list[str]:
        """One vLLM server a card; returns their addresses when all of them answer."""
        command = ["vllm", "serve", model, "--dtype", "bfloat16", "--max-model-len", "8192"]
        command += ["--limit-mm-per-prompt", '{"image": 0}']
        self.running = [
            subprocess.Popen(
                [*command, "--port", str(8000 + card)],
                env={**os.environ, "CUDA_VISIBLE_DEVICES": str(card), "VLLM_SERVER_DEV_MODE": "1"},
            )
            for card in range(gpus)
        ]
        for card in range(gpus):
            while not answers(f"http://127.0.0.1:{8000 + card}/health"):
                if self.running[card].poll() is not None:
                    raise RuntimeError(f"the server of card {card} ended with {self.running[card].returncode}")
                time.sleep(5)
        return [f"http://{self.address()}:{8000 + card}/v1" for card in range(gpus)]

    def train(self, command: list[str]) -> int:
        return subprocess.run(command, check=False).returncode


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def main() -> None:
    wanted = arguments()
    ray.init()
    count = wanted.trainers + wanted.servers
    group = placement_group([{"GPU": wanted.gpus, "CPU": 8}] * count, strategy="STRICT_SPREAD")
    ray.get(group.ready())
    nodes = [
        Node.options(  # type: ignore[attr-defined]
            num_gpus=wanted.gpus,
            num_cpus=8,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=k),
        ).remote()
        for k in range(count)
    ]
    trainers, servers = nodes[: wanted.trainers], nodes[wanted.trainers :]
    urls = [url for found in ray.get([s.serve.remote(wanted.model, wanted.gpus) for s in servers]) for url in found]
    head = ray.get(trainers[0].address.remote())
    command = ["torchrun", f"--nnodes={wanted.trainers}", f"--nproc-per-node={wanted.gpus}", "--rdzv-backend=c10d"]
    command += ["--shutdown-timeout=540"]  # a step must end before it is saved; torchrun's own 30 seconds are too few
    command += [f"--rdzv-endpoint={head}:29500", f"--rdzv-id={ray.get_runtime_context().get_job_id()}"]
    command += ["-m", "xreasoner.cli", "train", wanted.recipe, "--out", wanted.out, "--resume"]
    if urls:
        command += ["--set", f"stages.sft+rl.rollouts={{urls: [{', '.join(urls)}]}}"]
    sys.exit(max(ray.get([node.train.remote(command) for node in trainers])))


if __name__ == "__main__":
    main()
