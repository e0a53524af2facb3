"""The playground: a page to try the model, its files, and the markdown that it shows."""
