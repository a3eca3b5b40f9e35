"""`python -m gcd`: the same program as `gcd`. It must never do anything of its own."""

from __future__ import annotations

from gcd.cli import main

if __name__ == "__main__":
    main(prog_name="gcd")
