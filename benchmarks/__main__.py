"""All benchmarks, one after the other: `python -m benchmarks [--smoke]`."""

import argparse
import importlib
import time

NAMES = ("startup", "sandbox", "payload", "registration", "refresh")


def main() -> None:
    """Run them; `--smoke` only shows that all of them still run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="as small and as short as possible")
    parser.add_argument("--only", action="append", choices=NAMES, help="this one (may be given again)")
    given = parser.parse_args()
    for name in given.only or NAMES:
        started = time.perf_counter()
        print(f"\n## {name}", flush=True)
        importlib.import_module(f"benchmarks.{name}").main(["--smoke"] if given.smoke else [])
        print(f"\n({time.perf_counter() - started:.1f} s)", flush=True)


if __name__ == "__main__":
    main()
