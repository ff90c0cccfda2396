"""Commands that cannot work, typed as a user types them: is what comes back of help?

    python -m tests.campaign.commands FOLDER [REGEX [NUMBER]]

The rule, for each: the exit code is not 0; no traceback; at most three lines on standard error besides log lines;
the argument (or file) that is wrong is named in them, and no more than 30 seconds of CPU were used. The commands stand
in `bad_commands.txt`, each with what its message must name. They run in processes forked from this one, in which
everything is imported already: that start-up is not what is tried here. With REGEX those that match it are run, and
NUMBER of the others, drawn, without the harness's own tasks. What each of them said stands in FOLDER/said.txt.
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


def main(folder: Path, match: str | None, number: int) -> int:
    """Run them; 1 where one is not clear by the rule."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    found = commands(places(folder))
    warm(folder, all_tasks=match is None)
    if match is not None:
        chosen = [one for one in found if re.search(match, shlex.join(one[0]))]
        found = chosen + random.Random(0).sample([one for one in found if one not in chosen], number)
    failures = 0
    for words, names in found:
        code, said, cpu = run(words, folder)
        reason = wrong(code, said, cpu, names)
        with (folder / "said.txt").open("a") as log:
            log.write(f"{shlex.join(words)}\n{said}exit code {code}\n\n")
        if reason is not None:
            failures += 1
            print(f"{shlex.join(words)}: {reason}")
    print(f"{len(found)} commands, {failures} not clear by the rule")
    return int(bool(failures))


if __name__ == "__main__":
    given = [*sys.argv[1:], None, 0]
    # Absolute, since an adapter names its base model by path, and each command runs in the folder.
    sys.exit(main(Path(given[0]).absolute(), given[1], int(given[2] or 0)))
