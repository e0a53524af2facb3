"""The endpoints, and the bodies of their requests and responses."""
