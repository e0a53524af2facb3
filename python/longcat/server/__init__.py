"""`longcat serve`: the OpenAI API over an engine. `app.py` assembles the parts; docs/serving.md is the manual."""
