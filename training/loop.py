"""The training loop that every stage shares: schedule, average, checkpoints, progress bar."""

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from training.config import Stage

CHECKPOINT_SECONDS = 120


def autocast(device: str) -> torch.autocast:
    """bf16 where it is quick: on CUDA, and on a CPU that has instructions for it."""
    quick = device == "cuda" or torch.backends.cpu.get_cpu_capability() in ("AVX512", "AMX")
    return torch.autocast(device, torch.bfloat16, enabled=quick)


def learning_rate(step: int, done: float, peak: float) -> float:
    """Warm-up over 100 steps, the peak until a half is `done` (0 … 1), then a cosine down to a hundredth of it."""
    fall = max(0.0, 2 * done - 1)
    return peak * min(1.0, (step + 1) / 100) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * fall)))


class Average:
    """The exponential moving average of a module's parameters, as its `state_dict`."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module = module
        self._decay = decay
        self.parameters = [parameter.detach().clone() for parameter in module.parameters()]

    def update(self, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.parameters, [p.detach() for p in self._module.parameters()], 1 - decay)

    @contextlib.contextmanager
    def applied(self):  # type: ignore[no-untyped-def]
        """The module with its averaged parameters, for the length of a `with`."""
        current = [parameter.detach().clone() for parameter in self._module.parameters()]
        self._write(self.parameters)
        yield self._module
        self._write(current)

    def _write(self, values: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._module.parameters(), values, strict=True):
                parameter.copy_(value)


def train(
    name: str,
    module: nn.Module,
    loss: Callable[[int, float], torch.Tensor],
    stage: Stage,
    checkpoint: Path,
    device: str,
    average: float = 0.999,
) -> None:
    """Trains `module` in place and leaves it with its averaged parameters.

    Resumes from `checkpoint` where there is one, and leaves one when it is interrupted.

    Args:
        loss: the loss at a step, which draws its own batch; it also gets which part of the stage is done, 0 … 1.
    """
    fused = device in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(module.parameters(), stage.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=fused)
    mean = Average(module, average)
    step, before = 0, 0.0
    if checkpoint.is_file():
        saved = torch.load(checkpoint, map_location=device)
        module.load_state_dict(saved["module"])
        optimizer.load_state_dict(saved["optimizer"])
        mean.parameters = saved["average"]
        step, before = saved["step"], saved["seconds"]
    begin = saved_at = time.monotonic()

    def seconds() -> float:
        return before + time.monotonic() - begin

    def done() -> float:
        by_time = seconds() / (60 * stage.minutes) if stage.minutes else 0.0
        return max(step / stage.steps, by_time)

    def save() -> None:
        state = {
            "module": module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": mean.parameters,
            "step": step,
            "seconds": seconds(),
        }
        torch.save(state, checkpoint.with_suffix(".part"))
        checkpoint.with_suffix(".part").replace(checkpoint)

    shown = None
    module.train()
    with tqdm(desc=name, total=stage.steps, initial=step, unit="step", mininterval=5) as bar:
        try:
            while (part := done()) < 1:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, part, stage.lr)
                torch.manual_seed(step)  # what a step draws does not depend on where the run was resumed
                with autocast(device):
                    value = loss(step, part)
                value.backward()
                nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                mean.update(step)
                step += 1
                shown = value.detach() if shown is None else shown.lerp(value.detach(), 0.02)
                bar.update()
                if step % 20 == 0:
                    bar.set_postfix(loss=f"{shown.item():.4f}")
                if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                    save()
                    saved_at = time.monotonic()
        finally:
            save()
    mean._write(mean.parameters)
    module.eval()
