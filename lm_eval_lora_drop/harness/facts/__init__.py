"""lm-eval's own rules for a request and its answer, which engine, statistics and sweep use in our words.

`generation` (arguments, stops, where a text is cut), `batches` (padding and stop criteria, with torch), `requests`
(made by hand), `scoring` (filters and metrics of a task), `aggregations`.
"""
