"""All benchmarks, one after another, each in a process of its own.

python -m benchmarks [--quick] [--out FOLDER] [NAME ...]
"""

import argparse
import subprocess
import sys
from importlib.util import find_spec

from benchmarks import record

NAMES = (
    "memory_op",
    "trime_step",
    "replug_ensemble",
    "retro_step",
    "rpt_step",
    "refresh_overlap",
    "refresh_cost",
    "lm_vs_torch",
    "datastore_build",
    "chunk_neighbours",
    "search_crossover",
    "search_at_scale",
    "search_token_keys",
    "knn_sizes",
    "fill_blanks",
    "generate_vs_torch",
    "t5_decoding_vs_torch",
    "fid_step_vs_torch",
    "scoring_vs_torch",
    "scoring_ceiling_vs_torch",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--out", help="folder of the figures")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(NAMES))
    if unknown:
        parser.error(
            f"no benchmark {', '.join(unknown)}; choose from {', '.join(NAMES)}"
        )
    options = ["--quick"] if arguments.quick else []
    options += ["--out", arguments.out] if arguments.out else []
    failed = []
    for name in arguments.names or NAMES:
        if "vs_torch" in name and not find_spec("transformers"):
            print(f"{name}: skipped, it needs the extra 'dev'.", flush=True)
            continue
        print(f"{name}:", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *options]
        if subprocess.run(command, check=False, cwd=record.ROOT).returncode:
            failed.append(name)
    if failed:
        print(f"Failed: {', '.join(failed)}.", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
