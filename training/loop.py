"""The training loop that every stage shares: schedule, average, checkpoints, progress bar."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from training.config import Stage

CHECKPOINT_SECONDS = 120
LAYOUT = torch.channels_last  # of the convolutional parts and their inputs


def autocast(device: str) -> torch.autocast:
    """bf16 where it is quick: on CUDA, and on a CPU that has instructions for it."""
    quick = device == "cuda" or torch.backends.cpu.get_cpu_capability() in ("AVX512", "AMX")
    return torch.autocast(device, torch.bfloat16, enabled=quick)


def learning_rate(step: int, done: float, peak: float) -> float:
    """Warm-up over 100 steps, the peak until a half is `done` (0 … 1), a cosine down to a tenth of it at two thirds,
    and in the last third a line down to a hundredth.
    """
    fall = min(1.0, max(0.0, 6 * done - 3))
    low = 0.1 - 0.09 * max(0.0, 3 * done - 2)
    return peak * min(1.0, (step + 1) / 100) * (low + (1 - low) * (0.5 + 0.5 * math.cos(math.pi * fall)))


class Average:
    """The exponential moving average of a module's parameters, as its `state_dict`."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module = module
        self._decay = decay
        self.parameters = [parameter.detach().clone() for parameter in module.parameters()]

    def update(self, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.parameters, [p.detach() for p in self._module.parameters()], 1 - decay)

    def apply(self) -> None:
        """Gives the module its averaged parameters."""
        with torch.no_grad():
            for parameter, value in zip(self._module.parameters(), self.parameters, strict=True):
                parameter.copy_(value)


def _norm(norm: nn.GroupNorm, images: torch.Tensor) -> torch.Tensor:
    """Autocast would return float32; the kernel computes in it anyway, so half the bytes are enough between layers."""
    with torch.autocast("cuda", enabled=False):
        weight, bias = norm.weight.to(images.dtype), norm.bias.to(images.dtype)
        return nn.functional.group_norm(images, norm.num_groups, weight, bias, norm.eps)


@contextlib.contextmanager
def lean_norms(module: nn.Module):  # type: ignore[no-untyped-def]
    norms = [part for part in module.modules() if isinstance(part, nn.GroupNorm)]
    for norm in norms:
        norm.forward = functools.partial(_norm, norm)  # type: ignore[method-assign]
    yield
    for norm in norms:
        del norm.forward


class GraphedStep:
    """A training step as CUDA graphs, one for each kind of batch: these networks are so small that launching their
    kernels one by one takes longer than the kernels themselves.
    """

    def __init__(self, work: Callable[..., torch.Tensor]) -> None:
        self._work = work
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor]] = {}
        self._pool: Any = None
        self._failed = False

    def __call__(self, kind: Hashable, *batch: torch.Tensor) -> torch.Tensor:
        if self._failed:
            return self._work(kind, *batch)
        if kind not in self._graphs:
            try:
                self._graphs[kind] = self._capture(kind, [tensor.clone() for tensor in batch])
            except RuntimeError as error:
                print(f"No CUDA graph of a step, it runs without: {error}", flush=True)
                self._failed = True
                return self._work(kind, *batch)
        graph, held, value = self._graphs[kind]
        torch._foreach_copy_(held, list(batch))
        graph.replay()
        return value

    def _capture(
        self, kind: Hashable, held: list[torch.Tensor]
    ) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor]:
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(3):  # as torch asks for before a capture; they are steps like any other
                self._work(kind, *held)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            value = self._work(kind, *held)
        self._pool = graph.pool()
        return graph, held, value


def train(
    name: str,
    module: nn.Module,
    loss: Callable[..., torch.Tensor],
    stage: Stage,
    checkpoint: Path,
    device: str,
    average: float = 0.999,
    prepare: Callable[[int, float], tuple[Hashable, tuple[torch.Tensor, ...]]] | None = None,
) -> None:
    """Trains `module` in place and leaves it with its averaged parameters.

    Resumes from `checkpoint` where there is one, and leaves one when it is interrupted.

    Args:
        loss: the loss at a step, which draws its own batch; it also gets which part of the stage is done, 0 … 1.
        prepare: returns the batch and its kind, of which each has fixed shapes. `loss` then gets these two, draws
            random numbers on the device alone, and runs as a CUDA graph on a GPU.
    """
    graphed = prepare is not None and device == "cuda"
    fused = device in ("cpu", "cuda")
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    rate: Any = torch.tensor(stage.lr, device=device) if graphed else stage.lr
    optimizer = torch.optim.AdamW(
        parameters, rate, betas=(0.9, 0.99), weight_decay=0.01, fused=fused, capturable=graphed
    )
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

    def work(*of: Any) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device):
            value = loss(*of)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return value.detach()

    run = GraphedStep(work) if graphed else work
    shown = None
    module.train()
    lean = lean_norms(module) if device == "cuda" else contextlib.nullcontext()
    with lean, tqdm(desc=name, total=stage.steps, initial=step, unit="step", mininterval=5) as bar:
        try:
            while (part := done()) < 1:
                for group in optimizer.param_groups:
                    if graphed:
                        group["lr"].fill_(learning_rate(step, part, stage.lr))
                    else:
                        group["lr"] = learning_rate(step, part, stage.lr)
                if not graphed or step == 0:
                    torch.manual_seed(step)  # what a step draws does not depend on where the run was resumed
                if prepare is None:
                    value = run(step, part)
                else:
                    kind, batch = prepare(step, part)
                    value = run(kind, *batch)
                mean.update(step)
                step += 1
                shown = value.clone() if shown is None else shown.lerp(value, 0.02)
                bar.update()
                if step % 20 == 0:  # reading it also keeps the clock honest: a GPU works behind
                    bar.set_postfix(loss=f"{shown.item():.4f}")
                if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                    save()
                    saved_at = time.monotonic()
        finally:
            save()
    optimizer.zero_grad(set_to_none=True)
    mean.apply()
    module.eval()
