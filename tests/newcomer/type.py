#!/usr/bin/env python3
"""Types the shell blocks of a document into a terminal, one command after the other, as a newcomer
does: waits for each to end, answers when a password is asked for, and stops at the first that fails.
usage: type.py DOCUMENT"""
import os, pty, re, select, subprocess, sys, time

PASSWORD, LIMIT = "Correct horse 7", 60
# What the shell says when a command has ended.
DONE = rb"newcomer-done=(\d+)\r?\n"


def blocks(text):
    """The commands of the blocks marked `sh`, in order, each with the line it stands at. Without KVM
    what is said of virtual machines is left out, and that is said."""
    inside, lines, kvm = False, [], os.path.exists("/dev/kvm")
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("## A first VM") and not kvm:
            print(f"left out from line {number} on: this machine has no /dev/kvm")
            return
        if line.startswith("```"):
            if inside and lines:
                sys.exit(f"line {number}: a command does not end with its block")
            inside = line == "```sh"
        elif inside:
            lines.append(line)
            whole = "\n".join(lines)
            checked = subprocess.run(["bash", "-n", "-c", whole], capture_output=True, text=True)
            if checked.returncode == 0 and "here-document" not in checked.stderr:
                if whole.strip() and not whole.strip().startswith("#"):
                    yield number, whole
                lines = []


class Terminal:
    def __init__(self):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            says = "printf 'newcomer-done=%d\\n' $?"
            os.environ.update(PS1="", PS2="", PROMPT_COMMAND=says, TERM="dumb")
            os.execvp("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"])
        self.seen = b""

    def type(self, text):
        os.write(self.fd, text.encode() + b"\n")

    def wait(self, end):
        """Shows what comes until `end`, with passwords given where they are asked for."""
        answered, since = 0, time.time()
        while not re.search(end, self.seen):
            asked = len(re.findall(rb"(?:Password[^\r\n]*|Again):\s?", self.seen))
            if asked > answered:
                answered += 1
                self.type(PASSWORD)
            if time.time() - since > LIMIT:
                raise TimeoutError
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.fd, 65536)
                except OSError:
                    raise EOFError
        said, self.seen = self.seen, b""
        return said.decode(errors="replace")


def files():
    """All files of the checkout."""
    return {os.path.join(folder, name) for folder, _, names in os.walk(".") for name in names}


def main(document):
    before = files()
    terminal, count = Terminal(), 0
    terminal.wait(DONE)
    for number, command in blocks(open(document).read()):
        terminal.type(command)
        try:
            said = terminal.wait(DONE)
        except (TimeoutError, EOFError) as why:
            sys.exit(f"{document}:{number}: {command}\n{terminal.seen.decode(errors='replace')}\n{why!r}")
        print(said, flush=True)
        if "newcomer-done=0" not in said:
            sys.exit(f"{document}:{number}: failed: {command}")
        if command.rstrip().endswith("&"):
            # Nobody types the next line within the second.
            time.sleep(1.5)
        count += 1
    if files() != before:
        sys.exit(f"{document} leaves in the checkout: {sorted(files() ^ before)}")
    print(f"newcomer: PASS, {count} commands of {document}")


main(sys.argv[1])
