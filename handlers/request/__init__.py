"""From a body's bytes to a validated request. Imports no torch."""
