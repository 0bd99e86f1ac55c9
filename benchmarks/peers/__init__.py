"""Other ways to serve or run the same model, each a process of its own, as their users would write them."""
