"""Routes and bodies: what a client sends and gets, by the API it speaks."""
