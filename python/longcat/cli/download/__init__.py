"""Downloads of checkpoints: what a source lists, where the files go, and the transfer."""
