"""What a caller asks for and gets back: sampling parameters, forms, tokens, outputs."""
