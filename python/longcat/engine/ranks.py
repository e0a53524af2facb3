"""The ranks that an engine shares its model with."""

from __future__ import annotations

from collections.abc import Callable

import longcat._core as _core


def join_ranks(
    options: _core.EngineOptions, num_replicas: int, on_failure: Callable[[str], None]
) -> tuple[_core.Communicator | None, int]:
    """Joins the job that a launcher started, and fits `options` to this process's place in it.

    Args:
        options: of the engine; device, num_threads and ranks_per_machine are set.
        num_replicas: number of copies of the model.
        on_failure: called with the reason when the job has failed.
    Returns:
        The communicator of this process's replica (None when there is one rank in all), and the replica's index.
    Raises:
        ValueError: the launcher started another number of processes.
    """
    tp, ep = options.tensor_parallel_size, options.expert_parallel_size
    if max(tp, ep, num_replicas) == 1:
        return None, 0
    from longcat.parallel.job import join_job, threads_of_a_rank

    job = join_job(tp, ep, num_replicas)
    assert job is not None
    options.ranks_per_machine = job.launch.local_size
    if options.device == "cuda":
        options.device = f"cuda:{job.launch.local_rank}"
    if options.num_threads == 0:
        options.num_threads = threads_of_a_rank(job.launch)
    job.on_failure(on_failure)
    return job.replica(max(tp, ep)), job.launch.rank // max(tp, ep)
