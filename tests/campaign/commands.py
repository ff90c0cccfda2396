"""Commands that cannot work, typed as a user types them: is what comes back of help?

    python -m tests.campaign.commands [--folder .campaign/commands] [--only N] [--sample N [--match REGEX]]

The rule, for each: the exit code is not 0; no traceback; at most three lines on standard error besides log lines;
the argument (or file) that is wrong is named in them, and no more than 30 seconds of CPU were used. The commands stand
in `bad_commands.txt`, each with what its message must name. They run in processes forked from this one, in which
everything is imported already and the harness's list of tasks is made: that start-up is not what is tried here. What
each of them said stands in FOLDER/said.txt.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.campaign.tries import left, load, options, print_table

TABLE = Path(__file__).with_name("bad_commands.txt")
STARTUP = Path(__file__).resolve().parents[2] / "lm_eval_lora_drop" / "_startup.py"
_LOG = re.compile(r"^(\d{4}-\d\d-\d\d|WARNING|INFO|warning:|`torch_dtype`|Overwriting)")
MOST_LINES = 3
MOST_CPU = 30.0


def places(folder: Path) -> dict[str, str]:
    """The files that the commands name, made once."""
    from testing.run_files import swept, write_run

    base, adapter = folder / "base", folder / "adapter"
    if not adapter.exists():
        # Elsewhere: a model leaves threads behind, and a process with threads is not safely forked.
        make = "import sys; from testing.tiny import *; make_base(Path(sys.argv[1])); make_adapter(*map(Path, sys.argv[1:]))"
        subprocess.run([sys.executable, "-c", make, base, adapter], check=True, capture_output=True)
    run = write_run(folder / "runs", {"acc": [0.0, 1.0, 1.0, 0.0]}, lora_drop=swept())
    unswept = write_run(folder / "unswept", {"acc": [0.0, 1.0, 1.0, 0.0]})
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "words.txt").write_text("just words\n")
    if not (folder / "pipe").exists():
        os.mkfifo(folder / "pipe")
    made = {"base": base, "adapter": adapter, "run": run, "runs": run.parent, "unswept": unswept, "out": folder / "out"}
    made |= {
        "samples": next(run.parent.glob("samples_*")),
        "empty": folder / "empty",
        "text": folder / "words.txt",
        "pipe": folder / "pipe",
    }
    return {**{name: str(path.absolute()) for name, path in made.items()}, "task": "lora_drop_gsm8k"}


def commands(where: dict[str, str]) -> list[tuple[list[str], str]]:
    """Each command as a list of words, with what its message must match."""
    found, before = [], ""
    for line in TABLE.read_text(encoding="utf-8").split("\n"):
        if line.startswith("["):
            before = line.strip("[]").format(**where)
        elif line and not line.startswith("#"):
            text, _, names = line.partition("|")
            text = text.format(**where)
            words = shlex.split(before if "ARGUMENT" in before else f"{before} {text}")
            # Not through a shell's eyes: an argument may hold whatever a shell would take apart.
            found.append(([word.replace("ARGUMENT", text) for word in words], names))
    return found


def warm(folder: Path, *, all_tasks: bool = True) -> None:
    """Import what the commands import, with our hook on the harness as an installation arms it, and list the tasks.

    The harness's own take the longest; without `all_tasks` it has none but ours.
    """
    sys.meta_path[:] = [one for one in sys.meta_path if getattr(one, "__name__", "") != "_LoraDropFinder"]
    exec(STARTUP.read_text(), {"sys": sys})

    import lm_eval_lora_drop.backends.hf
    import lm_eval_lora_drop.commands.main  # noqa: F401
    from testing import task_files

    if all_tasks:
        task_files.read_once(folder / "task-index")
    else:
        task_files.leave_out()
    gc.freeze()  # a forked process that collects garbage would copy every page


def run(words: list[str], folder: Path) -> tuple[int, str, float]:
    """Exit code, standard error and CPU seconds of one command, in a process of its own."""
    errors = folder / "stderr.txt"
    shutil.rmtree(folder / "out", ignore_errors=True)
    child = os.fork()
    if not child:
        code = 99
        try:
            out = os.open(folder / "stdout.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            err = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(err, 2)
            faulthandler.enable(err)
            os.chdir(folder)
            sys.argv = words
            code = _call(words)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            code = 1
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code & 255)
    deadline = time.monotonic() + 300
    while True:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:  # it waits for something, a pipe perhaps
            os.kill(child, signal.SIGABRT)
        time.sleep(0.01)
    code = os.waitstatus_to_exitcode(status)
    return code, errors.read_text(errors="replace"), used.ru_utime + used.ru_stime


def _call(words: list[str]) -> int:
    if words[0] == "lora-drop":
        from lm_eval_lora_drop.commands.main import main as ours

        return ours(words[1:])
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
    return 0


def wrong(code: int, said: str, cpu: float, names: str) -> str | None:
    """Which part of the rule (see above) a command's end breaks, None where it breaks none."""
    lines = [line for line in said.split("\n") if line.strip() and not _LOG.match(line)]
    if code == 0:
        return "exit code 0"
    if code < 0:
        return f"ended by signal {-code}"
    if "Traceback" in said:
        return f"a traceback: {lines[-1][:200]}"
    if len(lines) > MOST_LINES:
        return f"{len(lines)} lines"
    if not any(re.search(one, said, re.IGNORECASE) for one in names.split("|")):
        return f"does not name {names}: {' '.join(lines)[:200]}"
    return f"{cpu:.0f} seconds of CPU" if cpu > MOST_CPU else None


def main() -> int:
    """Run them all; 1 where one fails."""
    parser = options(__doc__, "commands")
    parser.add_argument("--only", type=int, help="this command alone, with what it says")
    parser.add_argument("--sample", type=int, help="so many of them, drawn, without the harness's own tasks")
    parser.add_argument("--match", help="with --sample: besides, all whose words match this")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Absolute, since an adapter names its base model by path, and each command runs in the folder.
    found = commands(places(args.folder.absolute()))
    warm(args.folder, all_tasks=args.sample is None)
    if args.only is not None:
        print(shlex.join(found[args.only][0]), *run(found[args.only][0], args.folder), sep="\n")
        return 0
    numbers = list(range(len(found)))
    if args.sample is not None:
        drawn = random.Random(args.seed).sample(numbers, args.sample)
        match = [n for n in numbers if args.match and re.search(args.match, shlex.join(found[n][0]))]
        numbers = sorted({*drawn, *match})
    state = load(args.folder, {"commands": numbers})
    for place in left(args.folder, state, len(numbers)):
        number = numbers[place]
        words, names = found[number]
        code, said, cpu = run(words, args.folder)
        with (args.folder / "said.txt").open("a") as log:
            log.write(f"{number}: {shlex.join(words)}\n{said}exit code {code}\n\n")
        reason = wrong(code, said, cpu, names)
        if reason is not None:
            state["failures"].append(f"{number}: {shlex.join(words)}: {reason}")
    failures = state["failures"]
    rows = [("commands that cannot work: not clear by the rule", len(numbers), len(failures))]
    return print_table(rows, failures)


if __name__ == "__main__":
    sys.exit(main())
