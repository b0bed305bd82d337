"""What several tests share. Import it as `yardtest`: `from yardtest.redis import RedisServer`.

Tests are collected with `--import-mode=importlib`, which puts nothing on `sys.path`, so the test folders are no
packages and `from tests…` does not work. pytest's `pythonpath` names `tests` (for this package) and `demo` (for
`images`); it must never name the root of the repository, where `worker` and `broker` would be packages of their own.

    yardtest.redis     a private Redis that can be killed and started again on its data
    yardtest.wait      wait for a condition, up to a deadline
"""
