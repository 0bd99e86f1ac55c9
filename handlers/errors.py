"""How a request can fail. Each failure has the HTTP status that the contract gives it.

    RequestError
    ├── InvalidRequest      400  the client must change something
    ├── TooLarge            413  bytes, base64 or pixels exceed a limit
    ├── InternalError       500  a fault of the server; the log has the details
    │   └── NotFinite       500  the model's numbers overflowed
    ├── DeadlineExceeded    504  the client's deadline passed
    └── OutOfMemory         507  the device has no room for this request

    OperatorError                a sentence for the operator of the server
    └── ModelError               the model cannot be served at all (raised while loading)

`Generation.fail` turns a RequestError into an answer. The other rooms'
OperatorErrors: StartError and CheckFailed (launch), ReloadError (admin), SettingsError (proxy).
"""


class RequestError(Exception):
    """A failure that ends one request. `message` says what is wrong and what to do."""

    status = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(RequestError):
    status = 400


class TooLarge(RequestError):
    status = 413


class InternalError(RequestError):
    status = 500


class NotFinite(InternalError):
    def __init__(self) -> None:
        super().__init__(
            "The model's numbers overflowed, so there is no image: try a lower guidance_scale, another scheduler or, "
            "on a GPU, --dtype float32."
        )


class DeadlineExceeded(RequestError):
    status = 504


class OutOfMemory(RequestError):
    status = 507


class OperatorError(Exception):
    """The server cannot do what its operator asked for; the message is a sentence that says what to do."""


class ModelError(OperatorError):
    """The model cannot be loaded."""
