"""Everything that answers: scores, labels, written text, and the choice of a text's task.

The `Evaluator` answers with any parameters, those in training among them; a `Session` answers with
the finished tasks of a stream, on Python values, and `files` wraps it for JSON lines, tables and
plain text (`rows`). Nothing here changes a parameter: that is `training`, which stands above and
uses the evaluator.
"""
