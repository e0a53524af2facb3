"""JSON schemas: read into branches of one type each, and written again."""
