"""The host side of retrieval: datastores on disk and the indexes that search them."""
