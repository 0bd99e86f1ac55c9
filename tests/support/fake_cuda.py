"""A CUDA device without a GPU: its tensors say `cuda:0`, and their numbers are in the CPU's memory.

Every operation of torch passes through `Card.run`, which holds to a GPU's rules: a kernel takes no tensor of the other
device, and what makes the host wait for the device is noted, or fails within a CUDA graph. The numbers are real, so
stock pipelines, schedulers and the engine run as they are, and their images can be compared with the CPU's.

    with fake_cuda() as card:
        pipelines = load_pipelines(…, torch.device("cuda"), …)
        …
    assert not card.waits

What it cannot show: whether the kernels of a GPU exist for a shape or a dtype, what they round, and how long they take.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten

# They ask for a guard of the device, which torch has only in its CUDA builds: these run on the numbers as a whole
GUARDED = (torch.Tensor.__getitem__, torch.Tensor.__setitem__, torch.Tensor.contiguous, torch.Tensor.nonzero)
COPIES = (aten._to_copy.default, aten.copy_.default)
# torch's own tags for operations whose result, or its size, the host has to read
READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
READS_BESIDES = (aten._linalg_check_errors.default, aten.repeat_interleave.Tensor)  # which have no tag


class CudaTensor(torch.Tensor):
    """Says that it is on `cuda:0`; `numbers` is the tensor in the CPU's memory."""

    numbers: torch.Tensor
    card: "Card"
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers: torch.Tensor, card: "Card") -> "CudaTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls, numbers.size(), strides=numbers.stride(), storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype, layout=numbers.layout, device=torch.device("cuda", 0),
        )  # fmt: skip
        made.numbers, made.card = numbers, card
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"CudaTensor({self.numbers})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Outside of the modes."""
        card = next(one.card for one in tree_leaves((args, kwargs)) if isinstance(one, CudaTensor))
        return card.run(function, args, kwargs or {})


class DeviceMismatch(AssertionError):
    """A kernel was given tensors of two devices."""


@dataclass(frozen=True)
class Wait:
    """The host waited for the device.

    Attributes:
        operation: what made it wait.
        line: that called it, neither in torch nor in this file.
        stream: that it waited for; None for the default one.
        thread: of the host, by name.
    """

    operation: str
    line: str
    stream: Any
    thread: str

    def __str__(self) -> str:
        return f"{self.operation} in {self.line}"


@dataclass
class Card:
    """The device.

    Attributes:
        waits: so far, in their order.
        stream: the one that work is queued in; None for the default one.
        tape: while a graph is captured, its operations with their arguments and results.
        late: how many times an event is asked before it is done.
        arriving: the copies to the CPU that nobody has waited for, as target and numbers: until then the target has
            other contents.
    """

    waits: list[Wait] = field(default_factory=list)
    stream: Any = None
    tape: list[tuple[Callable[..., Any], Any, Any, Any]] | None = None
    late: int = 0
    arriving: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    _pinned: list[torch.Tensor] = field(default_factory=list)  # kept, so that no other tensor gets their addresses

    def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        """One of torch's operations, on the numbers."""
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        on_card = [isinstance(one, CudaTensor) for one in tensors]
        if function in COPIES:
            return self._copy(function, args, kwargs)
        if function is aten.is_pinned.default:
            return self._is_pinned(args[0])
        if function is aten._pin_memory.default:
            self._pinned.append(args[0].clone())
            return self._pinned[-1]
        device = kwargs.get("device")
        makes = any(on_card) if device is None else torch.device(device).type == "cuda"
        if not makes and not any(on_card):
            return function(*args, **kwargs)
        if any(on_card):
            self._check(function, tensors)
            if function in READS_BESIDES or (READS & set(function.tags) and not self._is_plain_index(function, args)):
                self.wait(str(function))
        kwargs = kwargs if device is None else kwargs | {"device": "cpu", "pin_memory": False}
        return self._call(function, args, kwargs, makes)

    def _call(self, function: Any, args: Any, kwargs: Any, makes: bool) -> Any:
        """`makes`: whether the results are on the device."""
        args, kwargs = tuple(args), dict(kwargs)
        plain_args, plain_kwargs = tree_map(numbers_of, args), tree_map(numbers_of, kwargs)
        made = function(*plain_args, **plain_kwargs)
        if self.tape is not None and makes:
            self.tape.append((function, plain_args, plain_kwargs, made))
        made = tree_map(lambda one: CudaTensor(one, self) if makes and type(one) is torch.Tensor else one, made)
        is_operation = isinstance(function, torch._ops.OpOverload)
        return return_and_correct_aliasing(function, args, kwargs, made) if is_operation else made

    def _copy(self, function: Any, args: Any, kwargs: Any) -> Any:
        given = function is aten._to_copy.default
        source = args[0] if given else args[1]
        device = kwargs.get("device") or source.device if given else args[0].device
        there, here = isinstance(source, CudaTensor), torch.device(device).type == "cuda"
        without_waiting = kwargs.get("non_blocking") or (not given and len(args) > 2 and args[2])
        if not here and not there:
            return function(*args, **kwargs)
        kwargs = kwargs | {"device": "cpu", "pin_memory": False} if given else kwargs
        if here and not there and not (without_waiting and self._is_pinned(source)):
            self.wait("a copy to the GPU from memory that is not pinned" if without_waiting else "a copy to the GPU")
        if there and not here:
            pinned = given or self._is_pinned(args[0])
            if without_waiting and pinned:
                return self._arrive(function, args, kwargs)
            self.wait("a copy to the CPU")
        return self._call(function, args, kwargs, here)

    def _arrive(self, function: Any, args: Any, kwargs: Any) -> torch.Tensor:
        """A copy to the CPU that is under way: other numbers, until the host waits."""
        source = args[0] if function is aten._to_copy.default else args[1]
        target = self._call(function, args, kwargs, False)
        self.arriving.append((target, source.numbers.to(target.dtype, copy=True)))
        return target.fill_(99)

    def _is_pinned(self, tensor: torch.Tensor) -> bool:
        return any(one.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() for one in self._pinned)

    def wait(self, operation: str) -> None:
        """Notes that the host waits for what is queued. Within a capture it fails, as on a GPU."""
        if self.tape is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {operation} in {calling_line()}")
        self.waits.append(Wait(operation, calling_line(), self.stream, threading.current_thread().name))
        self.arrive()

    def arrive(self) -> None:
        """Lets everything that is under way arrive."""
        for target, numbers in self.arriving:
            target.copy_(numbers)
        self.arriving.clear()

    def _check(self, function: Any, tensors: list[torch.Tensor]) -> None:
        """Raises DeviceMismatch. Kernels that take their tensors value by value read a number off the CPU."""
        takes_numbers = torch.Tag.pointwise in function.tags or function in (aten.fill_.Tensor, aten.fill.Tensor)
        for one in tensors:
            if not isinstance(one, CudaTensor) and not (takes_numbers and one.dim() == 0):
                raise DeviceMismatch(f"{function} takes a tensor {tuple(one.shape)} of the CPU in {calling_line()}")

    @staticmethod
    def _is_plain_index(function: Any, args: Any) -> bool:
        """Whether it is an index by numbers, whose result has a known size."""
        return function is aten.index.Tensor and all(one is None or one.dtype != torch.bool for one in args[1])

    def guarded(self, function: Any, args: Any, kwargs: Any) -> Any:
        """One of GUARDED on a tensor of the device."""
        if function is torch.Tensor.nonzero:
            self.wait("nonzero")
        index = args[1] if len(args) > 1 and function is not torch.Tensor.contiguous else ()
        for one in index if isinstance(index, tuple) else (index,):
            if isinstance(one, (list, range)) or (
                isinstance(one, torch.Tensor) and one.dim() and one.device.type == "cpu"
            ):
                self.wait("an index from the CPU")
            elif isinstance(one, CudaTensor) and (one.dtype == torch.bool or not one.dim()):
                self.wait("an index that the host reads")
        if function is torch.Tensor.__setitem__:
            value = args[2]
            if isinstance(value, torch.Tensor) and not isinstance(value, CudaTensor):
                self.wait("a copy to the GPU")
        return self._call(function, args, kwargs, True)


def numbers_of(value: Any) -> Any:
    return value.numbers if isinstance(value, CudaTensor) else value


def calling_line() -> str:
    """The innermost line that is neither torch's nor this file's."""
    frame = sys._getframe(1)
    while frame.f_back and (frame.f_code.co_filename == __file__ or "/torch/" in frame.f_code.co_filename):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"


class _Operations(TorchDispatchMode):
    def __init__(self, card: Card) -> None:
        super().__init__()
        self._card = card

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._card.run(function, args, kwargs or {})


class _Bindings(TorchFunctionMode):
    """What Python's bindings do before an operation begins."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self._card = card

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        args = [_with_index(one) for one in args] if function is torch.Tensor.to else args
        if "device" in kwargs:
            kwargs["device"] = _with_index(kwargs["device"])
        if function in GUARDED and isinstance(args[0], CudaTensor):
            return self._card.guarded(function, args, kwargs)
        if function is torch.asarray:  # of a file's bytes: no mode may be there
            with _disable_current_modes():
                return function(*args, **kwargs)
        if function is torch.Tensor.cuda:
            return args[0].to(torch.device("cuda", 0))
        if function in (torch.tensor, torch.as_tensor) and str(kwargs.get("device")).startswith("cuda"):
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        if function == torch.Tensor.data.__set__:
            return self._set_data(*args)
        if isinstance(args[0] if args else None, CudaTensor):
            if function is torch.Tensor.numpy:
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
            if function is torch.Tensor.copy_:  # which also asks for a guard
                return self._card.run(aten.copy_.default, args, kwargs)
            if function is torch.Tensor.tolist:
                self._card.wait("tolist")
                return args[0].numbers.tolist()
        return function(*args, **kwargs)

    @staticmethod
    def _set_data(tensor: torch.Tensor, data: torch.Tensor) -> None:
        """Also between the devices, as torch does, which sees tensors of different kinds here."""
        if type(tensor) is torch.Tensor and type(data) is torch.Tensor:
            tensor.data = data
            return
        other = torch.nn.Parameter(data, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else data
        torch.utils.swap_tensors(tensor, other.detach() if other is data else other)


def _with_index(value: Any) -> Any:
    """`cuda` as `cuda:0`: without a number, torch asks the guard for it."""
    return torch.device("cuda", 0) if value == "cuda" or value == torch.device("cuda") else value


def work_in_this_thread(card: Card) -> None:
    """Has another thread work with the device from now on; torch's modes belong to a thread."""
    _Operations(card).__enter__()
    _Bindings(card).__enter__()


@contextmanager
def fake_cuda() -> Iterator[Card]:
    """The device, in this thread and without gradients."""
    card = Card()
    torch._C._ensureCUDADeviceGuardSet()  # a CUDA build would ask the driver, where there is no GPU
    with mock.patch.object(torch.cuda, "_lazy_init", lambda: None), _Operations(card), _Bindings(card), torch.no_grad():
        yield card
