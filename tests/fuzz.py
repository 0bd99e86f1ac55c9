"""Coverage-guided fuzzing (atheris) of the properties in test_properties.py: `make fuzz`, after hypothesis' own.

Each property runs in a process of its own, since the fuzzer ends the process that it runs in. What it finds is a file
`crash-…` in the working folder and an exit code; hypothesis prints the example.
"""

import argparse
import subprocess
import sys

SECONDS = 60  # for each property


def run(name: str, seconds: int) -> None:
    import atheris

    with atheris.instrument_imports(include=["handlers"]):
        from tests.handlers import test_properties

    fuzzed = getattr(test_properties, name).hypothesis.fuzz_one_input
    # its memory limit is for all that is imported, too
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-rss_limit_mb=4096", "-max_len=4096"], fuzzed)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=SECONDS, help="for each property (default: %(default)s)")
    parser.add_argument("--property", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.property:
        run(options.property, options.seconds)

    from tests.handlers import test_properties  # not before here: what is imported already is not instrumented

    names = [name for name in dir(test_properties) if name.startswith("test_")]
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", str(options.seconds), "--property"]
    failed = [name for name in names if subprocess.run([*command, name]).returncode]
    print(f"{len(names)} properties, {options.seconds} s each; failed: {', '.join(failed) or 'none'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
