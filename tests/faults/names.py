"""The names of systems and of faults, without what takes seconds to import."""

SYSTEMS = (
    *("lm", "trime", "knn_lm", "retro", "rpt", "dpr", "contriever", "replug_lsr"),
    *("reranker", "fid", "atlas", "realm", "npm"),
)

SEVERAL = ("lm", "atlas")
"""Those that are tried in two processes: a step knows nothing of a system."""

KINDS = {
    "kill": "kill -9 while it trains, saves, builds or refreshes",
    "terminate": "SIGTERM at such a moment",
    "damage": "a file of an unfinished run, or of its cache, flipped, cut or deleted",
    "judged": "the same of a finished run, of which only the report is made again",
    "full": "a disk that fills up, or a limit to the size of a file",
    "read_only": "a workdir and a cache that cannot be written",
    "handles": "a limit to the number of open files",
    "memory": "a limit to the memory",
    "processes": "kill -9 of one of two processes",
}

BELOW = "ended by a library below"
"""Said of a try in which XLA ended a process that got no memory, in its own words."""
