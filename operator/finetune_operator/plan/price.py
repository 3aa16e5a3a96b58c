"""What a job's GPUs cost."""

from finetune_api.errors import Problem
from finetune_api.spec import FineTuneJob
from finetune_operator.settings import GpuPrice, Settings

DEFAULT = "default"
"""Entry of the prices for jobs that name no product."""


def find_price(job: FineTuneJob, settings: Settings) -> GpuPrice | None:
    """The platform's price of one of the job's GPUs for an hour."""
    return settings.gpu_prices.get(job.spec.resources.gpu.product or DEFAULT)


def find_unpriced(job: FineTuneJob, settings: Settings) -> list[Problem]:
    """A budget that can't be held because nobody knows what the GPUs cost."""
    budget, product = job.spec.budget, job.spec.resources.gpu.product or DEFAULT
    if budget.max_cost is None or find_price(job, settings) is not None:
        return []
    mend = f"have {product} added to settings.gpuPrices, or use maxGpuHours"
    return [
        Problem("spec.budget.maxCost", budget.max_cost, f"the platform has no price for GPU product {product}", mend)
    ]
