"""Plugin rules, one small module per family.

Adding a plugin touches one place: a function with ``@handles("its-name")`` in a module of this package.
Every module is found by itself; :mod:`registry` holds the decorator and what a rule may do.
"""
