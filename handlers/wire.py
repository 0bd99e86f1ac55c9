"""What passes between the proxy and an archive's handler, in both directions. Needs only the standard library.

The proxy sends a body's bytes unchanged with the headers of a `RequestHead`. The handler answers with lines, each of
them JSON or blank: any number of `Progress`, then one `Result` or one `Failed`. Blank lines mean nothing: TorchServe
requires an answer to every open request at every call.

    {"progress": {"step": 3, "of": 50}}
    {"progress": {"step": 5, "of": 50, "preview": "…"}}
    {"result": {…the contract's JSON…}}
    {"error": {"status": 507, "message": "…"}}

The proxy imports this module, `handlers.errors` and `handlers.catalogue`, and no other of `handlers`.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

TASKS = ("txt2img", "img2img", "masking")
DESCRIBE = "describe"  # instead of a task: asks for what `GET /models` shows
COUNT = "count"  # instead of a task: asks how many tokens the prompts of a request have
UPSCALE = "upscale"  # instead of a task: enlarges an image
MASK = "mask"  # instead of a task: a mask as it will be used, grown and blurred
WITHOUT_MODEL = (UPSCALE, MASK)
# at the end of the names of a ControlNet's fields: a request may have several
CONTROL_NUMBERS = ("", "_2", "_3", "_4")
COMBINED = "stable-diffusion"  # the archive that serves every task
CUSTOM = "custom-"  # the names of custom models' archives start with it, then comes the url_path
BODY_TYPE = "application/octet-stream"  # TorchServe hands it over as it is; its own form parser is slow and lossy
LINES_TYPE = "application/x-ndjson"
# where the proxy and TorchServe listen, unless variables say otherwise
HOST, PORT = "127.0.0.1", 1337
INFERENCE_URL, MANAGEMENT_URL = "http://127.0.0.1:8080", "http://127.0.0.1:8081"

TASK_HEADER = "X-Task"
_FORM_TYPE, _REQUEST_ID = "X-Form-Type", "X-Request-Id"
_DEADLINE, _PROGRESS = "X-Deadline", "X-Progress"
_RESULT_PREFIX, _RESULT_END = b'{"result": ', b"}"
_START_FAILURE = "cannot serve: "


@dataclass(frozen=True)
class RequestHead:
    """What the handler learns about a request besides its body.

    Attributes:
        task: one of TASKS, UPSCALE, MASK, DESCRIBE or COUNT; empty for an archive that has one task.
        form_type: the client's Content-Type, as it was sent.
        request_id: as it stands in the log and in the answer's X-Request-Id.
        deadline: when the client stops waiting, in seconds since the epoch.
        wants_progress: whether a line reports each step.
    """

    task: str = ""
    form_type: str = ""
    request_id: str = ""
    deadline: float = math.inf
    wants_progress: bool = False

    def headers(self) -> dict[str, bytes]:
        """The HTTP headers; bytes, since a client's Content-Type may hold more than ASCII."""
        headers = {"Content-Type": BODY_TYPE, TASK_HEADER: self.task, _FORM_TYPE: self.form_type}
        if self.request_id:
            headers[_REQUEST_ID] = self.request_id
        if self.deadline < math.inf:
            headers[_DEADLINE] = f"{self.deadline:.3f}"
        if self.wants_progress:
            headers[_PROGRESS] = "1"
        return {name: value.encode("latin-1", "replace") for name, value in headers.items()}

    @classmethod
    def read(cls, header: Callable[[str], str | None]) -> "RequestHead":
        """The head by a look-up of headers. Raises ValueError, with a sentence, for a deadline that is no number."""
        try:
            deadline = float(header(_DEADLINE) or "inf")
        except ValueError:
            raise ValueError(f"The header {_DEADLINE} must be a number: seconds since the epoch.") from None
        return cls(
            task=header(TASK_HEADER) or "",
            form_type=header(_FORM_TYPE) or "",
            request_id=header(_REQUEST_ID) or "",
            deadline=deadline,
            wants_progress=bool(header(_PROGRESS)),
        )


@dataclass(frozen=True)
class Progress:
    """Answered UNet calls, and UNet calls in all; now and then a preview of the first image, a JPEG as base64."""

    step: int
    of: int
    preview: str | None = None

    def fields(self) -> dict[str, int | str]:
        shown: dict[str, int | str] = {"step": self.step, "of": self.of}
        return shown if self.preview is None else shown | {"preview": self.preview}

    def line(self) -> bytes:
        return json.dumps({"progress": self.fields()}).encode() + b"\n"


@dataclass(frozen=True)
class Result:
    """The contract's JSON. A native answer goes to the client as it is: the proxy cuts it out of its line."""

    body: bytes

    @classmethod
    def of_images(cls, images: Sequence[bytes], warnings: Sequence[str] = ()) -> "Result":
        """The answer to a generation, from its images as `image_entry` writes them. No `warnings`: no such member."""
        end = b', "warnings": ' + json.dumps(warnings).encode() + b"}" if warnings else b"}"
        return cls(b'{"status": "success", "images": [' + b", ".join(images) + b"]" + end)

    @classmethod
    def joined(cls, results: "Sequence[Result]") -> "Result":
        """The answer of several generations as one."""
        answers = [json.loads(result.body) for result in results]
        images = [json.dumps(image).encode() for answer in answers for image in answer["images"]]
        warnings = [sentence for answer in answers for sentence in answer.get("warnings", [])]
        return cls.of_images(images, [*dict.fromkeys(warnings)])

    def line(self) -> bytes:
        return _RESULT_PREFIX + self.body + _RESULT_END + b"\n"


@dataclass(frozen=True)
class Failed:
    """The HTTP status that the contract gives a failure, and a sentence that says what to do."""

    status: int
    message: str

    def line(self) -> bytes:
        return json.dumps({"error": {"status": self.status, "message": self.message}}).encode() + b"\n"


def read_line(line: bytes) -> Progress | Result | Failed | None:
    """The message of a line, with or without its end; None for a blank one.

    Raises ValueError for a line that no handler of ours wrote: TorchServe writes some of its own.
    """
    line = line.rstrip(b"\n")
    if not line:
        return None
    if line.startswith(_RESULT_PREFIX) and line.endswith(_RESULT_END):
        return Result(line[len(_RESULT_PREFIX) : -len(_RESULT_END)])
    try:
        message = json.loads(line)
        if "error" in message:
            return Failed(message["error"]["status"], message["error"]["message"])
        return Progress(**message["progress"])
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"Not a line of a handler's: {line[:100]!r}") from error


def image_entry(
    base64: str,
    seed: int,
    nsfw: bool,
    size: tuple[int, int],
    mime_type: str = "image/png",
    box: tuple[int, int, int, int] | None = None,
    variation_seed: int | None = None,
) -> bytes:
    """One image of the contract's answer, as JSON. It has both spellings of the MIME type: clients read either.

    Args:
        size: width and height in pixels.
        box: where a patch belongs: left, top, width and height, in the init image's pixels.
        variation_seed: of an image whose noise lies between two seeds'.
    """
    entry: dict[str, object] = {"base64": base64, "seed": seed, "mimetype": mime_type, "mime_type": mime_type}
    entry |= {"width": size[0], "height": size[1], "nsfw": nsfw}
    optional = {"box": box, "variation_seed": variation_seed}
    entry |= {name: value for name, value in optional.items() if value is not None}
    return json.dumps(entry).encode()


def start_failure_line(sentence: str) -> str:
    """What a worker that cannot serve its model writes to its log, on one line: server.py looks for it there."""
    return _START_FAILURE + " ".join(sentence.split())[:1000]


def read_start_failure(line: str) -> str | None:
    """The sentence of a `start_failure_line` within a line of the log."""
    _, mark, sentence = line.partition(_START_FAILURE)
    return sentence if mark else None
