"""The page at `/`, `/docs`, and openapi.json."""
