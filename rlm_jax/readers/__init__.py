"""Text in, answers out: readers, as `retrievers` are text in, passages out."""
