"""`python -m batchyard.broker.cli`, for processes that start others without the console script."""

from . import main

if __name__ == "__main__":
    main()
