"""What each process of a test runs; a spawned one imports this module by name."""

import torch
import torch.distributed as dist

from stt_lite.quantizers import VectorQuantizer

RUNS = {
    "follows": dict(kmeans_iterations=0, dead_below=0.0),
    "restarts": dict(kmeans_iterations=10, dead_below=0.5),
}


def train_quantizer(
    options: dict, batches: torch.Tensor, seed: int
) -> dict[str, torch.Tensor]:
    """Buffers of a quantizer after training on `batches` (steps B D h w).

    `seed` is of the draws in training alone.
    """
    torch.manual_seed(0)
    quantizer = VectorQuantizer(24, 4, decay=0.8, **options)
    torch.manual_seed(seed)
    for batch in batches:
        quantizer(batch)
    return dict(quantizer.named_buffers())


def train_quantizers(rank: int, folder: str, batches: torch.Tensor) -> None:
    """Both runs in one of two processes, on half of each batch, written to `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    mine = batches.chunk(2, dim=1)[rank]
    results = {
        name: train_quantizer(options, mine, seed=1 + rank)
        for name, options in RUNS.items()
    }
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
