"""Coverage-guided fuzzing of what parses bytes from the network.

Each target is a module with `one(data)`: it raises nothing whatever `data` is, unless a promise is broken. The targets
need no fuzzer: `test_*_corpus.py` replays the inputs kept in `tests/corpus/`, and Atheris drives them when asked to.
"""
