"""`longcat serve`: the OpenAI API over an engine. `app.py` puts it together; docs/serving.md is its manual."""
