"""An image that a model from a file enlarges: it takes part in the steps as the job of a pipeline does."""

from collections.abc import Callable, Generator
from typing import Any

import torch

from handlers.forward.calls import UpscaleCall


class UpscaleJob:
    """As a PipelineJob, for the calls that `work` yields; each is sent its output.

    Args:
        steps: how many calls there are.
    """

    has_image = True  # its start loads a model

    def __init__(self, work: Generator[UpscaleCall, Any, Any], steps: int) -> None:
        self._work = work
        self.started = self.ended = False
        self.call: UpscaleCall | None = None
        self.steps_done = 0
        self.total_steps = steps
        self.result: Any = None
        self.error: BaseException | None = None

    def start(self) -> None:
        self.started = True
        self._continue(lambda: next(self._work))

    def advance(self, output: Any) -> None:
        self.steps_done += 1
        self._continue(lambda: self._work.send(output))

    def cancel(self, error: BaseException | None = None) -> None:
        if not self.ended:
            self.call, self.ended, self.error = None, True, error
            self._work.close()

    def _continue(self, resume: Callable[[], UpscaleCall]) -> None:
        self.call = None
        try:
            with torch.no_grad():
                self.call = resume()
        except StopIteration as end:
            self.ended, self.result = True, end.value
        except BaseException as error:  # the owner knows which request it ends
            self.ended, self.error = True, error
