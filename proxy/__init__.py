"""The REST API's front door: an ASGI app that turns the contract's requests into TorchServe inference calls."""
