"""A command on a terminal whose window is made narrower, and where Ctrl-C is typed: no progress bar stays on the screen.

terminal.py [--twice] PROGRAM ARGS: with --twice Ctrl-C is typed again before the first is heeded. Ends with an error, and what was on the screen, where one does. The terminal wraps its lines anew when its width
changes, as those of today do.
"""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time

WIDE, NARROW = 110, 47
# What a bar is made of, or the steps that stand behind it where the window leaves no room for one.
BAR = re.compile(r"[█░]|\d/1000000\b")
SEQUENCE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")


class Screen:
    """Lines as they were written, each of any length; rows are what the width makes of them."""

    def __init__(self, width):
        self.lines, self.line, self.column, self.width = [[]], 0, 0, width

    def rows_of(self, line):
        return max(1, -(-len(self.lines[line]) // self.width))

    def move_up(self, rows):
        row = min(self.column, max(len(self.lines[self.line]) - 1, 0)) // self.width
        for _ in range(rows):
            if row > 0:
                row -= 1
            elif self.line > 0:
                self.line -= 1
                row = self.rows_of(self.line) - 1
        self.column = row * self.width

    def row_start(self):
        # Behind the last column of a row the cursor waits in that row.
        at = self.column - 1 if self.column and self.column % self.width == 0 else self.column
        return at // self.width * self.width

    def control(self, argument, letter):
        if letter == "A":
            self.move_up(int(argument or 1))
        elif letter == "K" and argument == "2":
            start = self.row_start()
            cells = self.lines[self.line]
            for at in range(start, min(len(cells), start + self.width)):
                cells[at] = " "
            while cells and cells[-1] == " ":
                cells.pop()
        elif letter == "K":
            del self.lines[self.line][self.column :]
        elif letter == "J":
            del self.lines[self.line][self.column :]
            del self.lines[self.line + 1 :]

    def write(self, text):
        place = 0
        while place < len(text):
            found = SEQUENCE.match(text, place)
            if found:
                self.control(*found.groups())
                place = found.end()
                continue
            char = text[place]
            place += 1
            if char == "\r":
                self.column = self.row_start()
            elif char == "\n":
                self.line += 1
                self.column = 0
                if self.line == len(self.lines):
                    self.lines.append([])
            elif char >= " ":
                cells = self.lines[self.line]
                cells.extend(" " * (self.column + 1 - len(cells)))
                cells[self.column] = char
                self.column += 1

    def text(self):
        return "\n".join("".join(line).rstrip() for line in self.lines)


def main():
    twice = sys.argv[1] == "--twice"
    program = sys.argv[2:] if twice else sys.argv[1:]
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(program[0], program)
    screen, everything = Screen(WIDE), ""

    def resize(width):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
        screen.width = width

    def read(seconds, until=None):
        nonlocal everything
        end = time.time() + seconds
        while time.time() < end:
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    new = os.read(terminal, 65536).decode("utf-8", "replace")
                except OSError:
                    return True
                if not new:
                    return True
                everything += new
                screen.write(new)
            if until is not None and until():
                return False
        return False

    try:
        resize(WIDE)
        read(120, lambda: "training" in everything and "steps" in everything and BAR.search(screen.text()))
        assert BAR.search(screen.text()), f"there was no bar:\n{everything}"
        resize(NARROW)
        read(2.0)
        bars = [line for line in screen.text().splitlines() if BAR.search(line)]
        assert len(bars) <= 1, f"the narrower window has {len(bars)} bars:\n{screen.text()}"
        assert all(len(line) <= NARROW for line in bars), f"the bar is wider than the window:\n{screen.text()}"
        os.write(terminal, b"\x03")
        if twice:
            assert not read(0.3), f"the first Ctrl-C was heeded at once:\n{screen.text()}"
            os.write(terminal, b"\x03")
        ended = read(60)
        _, status = os.waitpid(pid, 0) if ended else (os.kill(pid, signal.SIGKILL), 1)
        assert os.waitstatus_to_exitcode(status) == 130, f"ended with {status}:\n{screen.text()}"
        assert not BAR.search(screen.text()), f"a bar stays on the screen:\n{screen.text()}"
        assert ("interrupted" in screen.text()) != twice, screen.text()

    finally:
        # Gone already where all went well.
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

main()
