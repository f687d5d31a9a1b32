"""The compiler options under which XLA runs collectives beside compute (benchmarks/overlap.md, docs/plans.md).

On TPUs all-to-all is synchronous without its option; all-gathers, reduce-scatters and sums are until the SparseCores
carry them, which v5p and v6e have, and which leave the cores that multiply free. For H100s jax 0.11.2 overlaps 6 of 8
exchanges of two groups with the option and without it; it states what a default may not be tomorrow. Products of one
operand are merged there where one of them is small, 64 MiB by default: a device's share of rows then makes one product
of the mixer's input and its gate, whose result is cut up again, a pass over what a whole batch of rows keeps apart.
"""

OPTIONS: dict[str, dict[str, str | bool | int]] = {
    "tpu": {
        "xla_tpu_enable_async_all_to_all": "true",
        "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather": "true",
        "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
        "xla_tpu_enable_sparse_core_collective_offload_all_reduce": "true",
        "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
    },
    "gpu": {"xla_gpu_enable_latency_hiding_scheduler": True, "xla_gpu_dot_merger_threshold_mb": 32},
}


COPIES = {"xla_gpu_collective_permute_mode": "COLLECTIVES_PEER_MEMORY"}  # permutes by the copy engines


def compiler_options(platform: str, collectives: str = "auto") -> dict[str, str | bool | int]:
    """For `jax.jit(..., compiler_options=...)` of a train step on devices of this platform ("cuda" is "gpu"), whose
    collectives are made so (`compute.collectives`)."""
    platform = "gpu" if platform == "cuda" else platform
    return OPTIONS.get(platform, {}) | (COPIES if (platform, collectives) == ("gpu", "copies") else {})
