"""Mutated archives and images, read in a child process under limits of memory and time.

``make fuzz`` runs many; ``test_fuzz.py`` runs few. A new kind of input is a module with
``SECONDS``, ``MEMORY_BYTES``, ``inputs`` and ``read``, as ``archives`` and ``images`` have them.
"""
