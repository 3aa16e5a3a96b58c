"""What came of a run, for a person."""

from rich.console import Console
from rich.markup import escape

from finetune_api.progress import Result


def print_summary(result: Result, out: Console) -> None:
    """Losses, answers, speed, memory and where the artifacts lie."""
    out.print(f"[bold]{escape(result.job)}[/bold]: {result.steps} steps, {result.epochs:g} epochs")
    if result.loss is not None:
        out.print(f"training loss    {result.loss:.4f}")
    if result.eval_loss_before is not None and result.eval_loss is not None:
        out.print(f"validation loss  {result.eval_loss_before:.4f} before, {result.eval_loss:.4f} after")
    for name, value in result.evaluation.items():
        if name != "loss":
            before = f"{result.evaluation_before[name]:.4g} before, " if name in result.evaluation_before else ""
            out.print(f"{escape(name):<16} {before}{value:.4g} after")
    for gate in result.gates:
        bound, met = (f"{each:.4g}" if each is not None else "no number" for each in (gate.bound, gate.value))
        style = "green" if gate.held else "bold red"
        out.print(f"[{style}]gate             {escape(gate.metric)} {gate.op} {bound}: {met}[/]")
    if result.best_step is not None:
        out.print(f"best weights     of step {result.best_step}")
    out.print(f"speed            {result.tokens_per_second:,.0f} tokens/s")
    resumed = f", resumed {result.resumes} time{'s' if result.resumes > 1 else ''}" if result.resumes else ""
    out.print(f"wall time        {_duration(result.train_seconds)} of training{resumed}")
    gpu = f", {_bytes(result.peak_gpu_memory_bytes)} on the GPU" if result.peak_gpu_memory_bytes else ""
    out.print(f"peak memory      {_bytes(result.peak_host_memory_bytes)} on the host{gpu}")
    share = result.trainable_parameters / result.total_parameters if result.total_parameters else 0
    out.print(
        f"trained          {result.trainable_parameters:,} of {result.total_parameters:,} parameters ({share:.2%})"
    )
    for artifact in result.artifacts:
        verified = "" if artifact.difference is None else f", verified to {artifact.difference:.1g}"
        out.print(f"{artifact.type:<16} {escape(artifact.path)} ({_bytes(artifact.bytes)}{verified})")
    if result.delivered_to is not None:
        out.print(f"brought to       {escape(result.delivered_to)}")
    if result.pushed_to is not None:
        out.print(f"uploaded to      {escape(result.pushed_to)}")
    for sample in result.samples:
        out.print(f"\n[bold]{escape(sample.prompt)}[/bold]")
        out.print(f"  before  {escape(_one_line(sample.before))}", style="dim")
        out.print(f"  after   {escape(_one_line(sample.after))}")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes}m {rest}s" if hours else f"{minutes}m {rest}s" if minutes else f"{rest}s"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
