"""`python -m boxwright` is the command `boxwright`; `torchrun -m boxwright` runs it in several processes."""

from .cli import main

if __name__ == "__main__":
    main()
