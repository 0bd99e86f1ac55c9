"""Other clients' APIs: a request of theirs becomes the native one, and the native answer theirs."""
