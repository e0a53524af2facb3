"""Several ranks: what the launcher says, the job that ranks form, and the watch over lost ranks."""

from longcat.parallel.job import current_job

__all__ = ["current_job"]
