"""Large images, read and written beside the small ones: no client waits for another's, and memory is bounded."""

from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from threading import Condition, Timer
from typing import Any

from handlers.hardware.heap import trim_heap

REST_S = 1.0  # without a large image, until the memory of the last ones goes back to the system
LARGE = 8_000_000  # pixels from which on it takes a noticeable part of a second


class LargeImages:
    """One thread that reads them and one that writes them.

    Args:
        max_pixels: of all images that are held decoded at once. One that is larger is read while there is no other.
    """

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self.held = 0
        self.changed = Condition()
        self._rest: Timer | None = None
        # two, since a reader that waits for room waits for a writer
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="large-in")
        self._writers = ThreadPoolExecutor(1, thread_name_prefix="large-out")

    def read(self, pixels: int, work: Callable[..., Any], *arguments: Any) -> "LargeImage":
        """Has `work` done once there is room for an image of so many pixels."""
        image = LargeImage(pixels, self)
        image.reading = self._readers.submit(image.read, work, *arguments)
        return image

    def write(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self._writers.submit(work, *arguments)

    def rest(self) -> None:
        """Has the heap trimmed, unless large images come at once. An answer's lines have been sent by then."""
        if self._rest is not None:
            self._rest.cancel()
        self._rest = Timer(REST_S, self._trim)
        self._rest.daemon = True
        self._rest.start()

    def _trim(self) -> None:
        if not self.held:
            trim_heap()


class LargeImage:
    """An image that takes part of the room, from when it is read until `end`. `reading` is what its `work` returns."""

    reading: Future[Any]

    def __init__(self, pixels: int, images: LargeImages) -> None:
        self._pixels = pixels
        self._images = images
        self._is_held = False
        self._has_ended = False

    def read(self, work: Callable[..., Any], *arguments: Any) -> Any:
        images = self._images
        with images.changed:
            images.changed.wait_for(
                lambda: self._has_ended or not images.held or images.held + self._pixels <= images.max_pixels
            )
            if self._has_ended:
                raise CancelledError
            images.held += self._pixels
            self._is_held = True
        return work(*arguments)

    def end(self) -> None:
        """Gives its room to others, or gives up waiting for it. May be called again."""
        with self._images.changed:
            was_held, self._is_held, self._has_ended = self._is_held, False, True
            self._images.held -= self._pixels * was_held
            self._images.changed.notify_all()
            if was_held and not self._images.held:
                self._images.rest()
